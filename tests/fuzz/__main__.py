"""`python -m tests.fuzz [--examples N] [NAME ...]`: coverage-guided, one process for each parser.

Needs atheris, which `make fuzz` fetches. An input that crashes a parser, or keeps it for more than a second,
ends its process; it is printed, and the exit status is 1.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parsers; none: all of them")
    parser.add_argument("--examples", type=int, default=1_000_000, help="for each parser (default 1000000)")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer (default 1)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        return fuzz_here(arguments.names[0], num_examples=arguments.examples, seed=arguments.seed)
    from tests.fuzz.parsers import PARSERS

    unknown = set(arguments.names) - {each.name for each in PARSERS}
    if unknown:
        parser.error(f"there is no parser {min(unknown)}: {', '.join(each.name for each in PARSERS)}")
    failed = []
    for name in arguments.names or [each.name for each in PARSERS]:
        begun = time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz", "--here", name]
        command += ["--examples", str(arguments.examples), "--seed", str(arguments.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begun
        if done.returncode != 0:
            failed.append(name)
            sys.stdout.write(done.stdout[-4000:] + done.stderr[-4000:])
        word = "ok" if done.returncode == 0 else "FAILED"
        sys.stdout.write(f"{name}: {word}, {arguments.examples} examples in {seconds:.0f} s\n")
        sys.stdout.flush()
    return 1 if failed else 0


def fuzz_here(name: str, *, num_examples: int, seed: int) -> int:
    """In this process, which libFuzzer ends."""
    import atheris

    # What is imported here tells the fuzzer which branches an input takes.
    with atheris.instrument_imports(include=["asympo"]):
        from tests.fuzz.parsers import PARSERS, attempt

    # A million warnings about what was left out say nothing.
    logging.disable()
    parser = next(each for each in PARSERS if each.name == name)
    with tempfile.TemporaryDirectory(prefix="asympo-fuzz-corpus-") as corpus:
        for number, data in enumerate(parser.seeds):
            with open(f"{corpus}/{number}", "wb") as file:
                file.write(data)
        limits = [
            f"-runs={num_examples}",
            f"-seed={seed}",
            "-timeout=60",
            "-max_len=4096",
            "-rss_limit_mb=2048",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={tempfile.gettempdir()}/fuzz-{name}-", corpus],
            lambda data: attempt(parser, data),
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
