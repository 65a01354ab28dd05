"""Values that were right for the release before are right for this one."""

from deploy.chart import rendering
from tests.helm.conftest import CHART, ROOT

BEFORE = ROOT / "tests/compat/v0.1/values.yaml"


def test_every_value_of_the_release_before_is_still_one() -> None:
    model = "model.path=/checkpoints/models/any"
    result = rendering.template(CHART, values=[BEFORE], sets=[model])
    assert result.returncode == 0, result.stderr
    assert rendering.objects(result.stdout)
