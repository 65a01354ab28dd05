"""Reward functions as a script for TRL's GRPOTrainer has them: nothing here knows who calls them."""

import re


def correctness(completions, answer, log_metric=None, log_extra=None, **kwargs):
    """1 where the last number of a response is the answer."""
    numbers = [re.findall(r"-?\d[\d,]*\.?\d*", completion) for completion in completions]
    given = [found[-1].replace(",", "").rstrip(".") if found else None for found in numbers]
    if log_metric is not None:
        log_metric("without_a_number", given.count(None) / len(given))
    if log_extra is not None:
        log_extra("given", [str(one) for one in given])
    return [float(one == right.replace(",", "")) for one, right in zip(given, answer, strict=True)]


def says_how(completions, **kwargs):
    """Half a point for a response of more than one line."""
    return [0.5 if "\n" in completion.strip() else 0.0 for completion in completions]
