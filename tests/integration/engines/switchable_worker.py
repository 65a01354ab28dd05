"""The product's worker extension with a switch for its repair, to show what happens without it."""

from typing import Any

from asympo.common import errors
from asympo.engines import vllm_worker


class SwitchableWorkerExtension(vllm_worker.PolicyWorkerExtension):
    repairs = True

    def switch_repair(self, repairs: bool) -> None:
        type(self).repairs = repairs

    def refresh_tied_layers(self, *args: Any) -> None:
        if self.repairs:
            super().refresh_tied_layers(*args)

    def check_tied_layers(self, *args: Any) -> None:
        if self.repairs:
            super().check_tied_layers(*args)

    def complaint_about_ties(self) -> str | None:
        """What the product's own check says about the weights as they are."""
        model = self.model_runner.get_model()
        try:
            super().check_tied_layers(model, vllm_worker._ties(model))
        except errors.EngineBroken as error:
            return str(error)
        return None
