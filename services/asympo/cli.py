def main() -> int:
    raise SystemExit("asympo: not built yet")
