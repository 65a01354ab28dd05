"""`python -P …/player/__main__.py SPEC VERB …`: makes this folder a package of its own, and starts it."""

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "asympo_player"


def main() -> None:
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} holds no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)
    importlib.import_module(f"{NAME}.command").main(*sys.argv[1:])


if __name__ == "__main__":
    main()
