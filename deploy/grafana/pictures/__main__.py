"""Pictures of the dashboards on data of a real run, for the guides.

Needs prometheus, chromium and npm on the path; the first time it fetches Grafana's components (440 MB).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from asympo.demo.model import prepare_model

from deploy.grafana.pictures.draw import CACHE, draw
from deploy.grafana.pictures.record import DASHBOARDS, ROOT, record

_DEMO = ROOT / "services/asympo/demo/demo.toml"
_DEMO_SECONDS = 600.0
"""At most: it is looked at to its end."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.grafana.pictures", description=__doc__.splitlines()[0])
    own = Path(__file__).with_name("run.toml")
    parser.add_argument("--config", type=Path, default=own, help="what `asympo run` is given")
    parser.add_argument("--demo", action="store_true", help="the demo's run: its model, on vLLM, to the end")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the run is looked at")
    parser.add_argument("--board", action="append", choices=DASHBOARDS, help="only this one")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/images", help="where the pictures go")
    parser.add_argument("--again", action="store_true", help="draw what was recorded last, without a run")
    arguments = parser.parse_args()
    recorded = CACHE / "recorded.json"
    if not arguments.again:
        config, model, seconds = arguments.config.resolve(), None, arguments.seconds
        if arguments.demo:
            config, model, seconds = _DEMO, str(prepare_model()), _DEMO_SECONDS
        with tempfile.TemporaryDirectory(prefix="asympo-pictures-") as directory:
            data = record(config, Path(directory), model=model, seconds=seconds)
        CACHE.mkdir(parents=True, exist_ok=True)
        recorded.write_text(json.dumps(data))
    data = json.loads(recorded.read_text())
    boards = arguments.board or DASHBOARDS
    data["boards"] = {name: board for name, board in data["boards"].items() if name in boards}
    for path in draw(data, arguments.folder):
        sys.stdout.write(f"{path} ({path.stat().st_size // 1024} KiB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
