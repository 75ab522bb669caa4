"""A charter in plain words, for the person who signs it and for the one who agrees to it."""

from __future__ import annotations

from fedddpm_protocol.agreement.charter import CONSTANT, Charter


def charter_rows(charter: Charter) -> tuple[tuple[str, str], ...]:
    """What it says, and what that means, line by line; every field of the record stands in one of them."""
    training, travel, first = charter.training, charter.travel, charter.first_model
    network = charter.architecture
    size = f"{network.image_size}x{network.image_size}x{network.channels}"
    wide = f"{network.base_dim} channels times {', '.join(map(str, network.multipliers))}"
    labels = f", {network.classes} classes" if network.classes else ""
    most = f"{training.max_steps} steps at most" if training.max_steps else "no limit of steps"
    falling = "in every round" if training.schedule == CONSTANT else "in the first round, falling evenly to the last"
    origin = f"from the public seed {first.seed.hex()}" if first.seed else "given weights that are downloaded"
    clipping = "following the last mean" if travel.is_adaptive else "in every round"
    return (
        ("federation", charter.federation),
        ("charter", f"number {charter.number}, hash {charter.hash.hex()[:16]}"),
        ("run", f"{charter.run}, {charter.rounds} rounds of {charter.method}"),
        ("ends", f"run {', '.join(charter.ends)}, whatever came of it" if charter.ends else "no other run"),
        ("network", f"{network.preset}, {size} pixels{labels}, {wide}"),
        ("first model", f"{first.model_hash.hex()[:16]}, {origin}"),
        *((("found in its weights", first.findings),) if first.findings else ()),
        ("training a round", f"{training.epochs} epochs of batches of {training.batch_size} images; {most}"),
        (
            "least work",
            f"{training.min_steps} steps behind an update, {training.min_images} images at an institution",
        ),
        ("learning rate", f"{training.learning_rate:g} {falling} ({training.optimizer}, {training.objective})"),
        ("largest update", f"L2 norm {travel.clip_norm:g}, {clipping}"),
        ("weights", f"{travel.weighting}, {travel.weight_cap} samples count in full"),
        (
            "on the way",
            f"{travel.bits} bits a value, {travel.first_bits} where nothing is known of the size;"
            f" chunks of {travel.chunk_coordinates} values",
        ),
        ("smallest cohort", f"{charter.min_cohort} institutions"),
    )
