"""What can be wrong with a run that starts over is said before the run of its name is deleted."""

from asympo.common.settings import validate
from asympo.learner.settings import LearnerSettings
from asympo.local.ports import require_free
from asympo.run.prepare.machine import Machine
from asympo.run.prepare.plan import check_devices, check_inputs
from asympo.run.settings import RunFile


def check_before_deletion(file: RunFile, machine: Machine) -> None:
    """BadSetting or BadModel where a plan of this file would be refused for inputs, devices or ports."""
    if not validate(LearnerSettings, file.learner_values).task.is_environment:
        # The rows of an environment are written with the plan.
        check_inputs(file)
    check_devices(file, machine)
    if file.broker.port and not file.external_broker_url:
        require_free(file.broker.port, setting="broker.port")
    sections = {
        "learner": file.learner_values,
        "generator": file.generator_values,
        "gateway": file.gateway_values or {},
        "evaluator": file.evaluator_values if file.run.evals else {},
    }
    for section, values in sections.items():
        for name in ("http_port", "grpc_port"):
            if values.get(name):
                require_free(values[name], setting=f"{section}.{name}")
