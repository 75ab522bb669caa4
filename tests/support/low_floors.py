"""What institutions of tests allow so that a test takes seconds: a dozen images, a step or two, weights made by hand.

Everything else of their policy is what a hospital has by default.
"""

from __future__ import annotations

from fedddpm.config import LocalPolicyOptions

LOW_FLOORS: dict[str, object] = {"min_images": 1, "min_steps": 1, "min_images_seen": 1, "allow_weights": True}
IN_TOML = "[policy]\nmin_images = 1\nmin_steps = 1\nmin_images_seen = 1\nallow_weights = true\n"
IN_WORDS = ("--min-images", "1", "--min-steps", "1", "--min-images-seen", "1", "--allow-weights")


def with_low_floors(policy: LocalPolicyOptions | None = None) -> LocalPolicyOptions:
    """``policy`` with low floors where it names none itself."""
    named = {} if policy is None else policy.model_dump(exclude_unset=True)
    return LocalPolicyOptions.model_validate({**LOW_FLOORS, **named})
