"""Checks of the data."""

import time
from statistics import median
from typing import final

from fusion.doctor.base import Check, Finding, Patient, State

FEW = 2  # samples of a batch below which a direction has no negatives
MANY_DUPLICATES = 0.3
MANY_REJECTED = 0.01
LONG_WAIT = 0.2


@final
class Readable(Check):
    """How many samples were rejected, and why."""

    title = "samples can be read"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        intake = patient.intake
        num = sum(intake.rejected.values())
        why = ", ".join(f"{count} {code}" for code, count in intake.rejected.items())
        what = f"{num} of {intake.num_read} rejected{f' ({why})' if why else ''}"
        if num == intake.num_read:
            return Finding(State.FAIL, what, f"Nothing can be trained on: {intake.example}.")
        if num > intake.max_rejected * intake.num_read:
            advice = f"More than max_rejected, so a run would stop; the first is {intake.example}."
            return Finding(State.FAIL, what, advice)
        if num > MANY_REJECTED * intake.num_read:
            return Finding(State.WARNING, what, f"Mend these; the first is {intake.example}.")
        return Finding(State.OK, what)


@final
class Present(Check):
    """Whether each direction that is trained has samples with all its modalities."""

    title = "modalities present"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        had, num = patient.intake.present, max(1, len(patient.intake.groups))
        shares = {name: had.get(name, 0) / num for name in patient.model.modalities}
        what = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        never = [name for name, share in shares.items() if not share]
        lost = [str(d) for d in patient.directions if set(never) & {*d.query, *d.target}]
        if len(lost) == len(patient.directions):
            advice = f"No direction can be trained: no sample has {' or '.join(never)}."
            return Finding(State.FAIL, what, advice)
        if lost:
            advice = f"{', '.join(lost)} will not train: no sample read has {' or '.join(never)}."
            return Finding(State.WARNING, what, advice)
        few = [name for name, share in shares.items() if share * patient.batch_size < FEW]
        if few:
            advice = f"A batch has next to no {', '.join(few)}; raise batch_size or its weight."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class Captions(Check):
    """How long captions are, and how many samples share one."""

    title = "captions and groups"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        lengths, groups = patient.intake.lengths, patient.intake.groups
        if not groups:
            return Finding(State.FAIL, "no sample", "Give shards that hold samples.")
        repeated = 1 - len(set(groups)) / len(groups)
        what = (
            f"median {median(lengths):.0f} letters, at most {max(lengths)}; {len(set(groups))} "
            f"groups in {len(groups)} samples"
        )
        empty = sum(length == 0 for length in lengths)
        if len(set(groups)) < FEW:
            advice = "All samples are of one group, so there is no negative; check group_id."
            return Finding(State.FAIL, what, advice)
        if "text" in patient.model.modalities and empty:
            return Finding(
                State.WARNING, what, f"{empty} samples have no caption; add one to each."
            )
        if repeated > MANY_DUPLICATES:
            advice = f"{repeated:.0%} repeat a group; positives are many, so read recall with care."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class Feeding(Check):
    """Whether training would wait for data, by the time of a step of this model."""

    title = "speed of loading"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        model, loss = patient.copy(awake=False)
        model.train()
        times = []
        for _ in range(3):
            began = time.perf_counter()
            patient.total(model, loss).backward()
            times.append(time.perf_counter() - began)
        step = median(times) / len(patient.batch["group_id"])
        load, intake = patient.intake.seconds, patient.intake
        what = f"{1 / max(load, 1e-9):,.0f} samples/s are read, {1 / max(step, 1e-9):,.0f} trained"
        if not intake.concurrent:
            return Finding(State.OK, f"{what} on this CPU; reading is done once, before")
        wait = max(0.0, load - step) / max(load, step, 1e-9)
        what = f"{what} on this CPU: {wait:.0%} of the time waits for data"
        if wait > LONG_WAIT:
            advice = "Raise num_workers; fusion bench-data says which stage is slow."
            return Finding(State.WARNING, what, advice)
        return Finding(State.OK, what)


@final
class FiniteInputs(Check):
    """Whether all inputs are finite numbers."""

    title = "inputs are finite"

    def run(self, patient: Patient) -> Finding:
        """See `Check.run`."""
        batch = patient.batch
        keys = batch.get("keys", range(len(batch["group_id"])))
        bad = []
        for name, values in batch["inputs"].items():
            finite = values.flatten(1).isfinite().all(1)
            bad += [f"{keys[row]} ({name})" for row in (~finite).nonzero().squeeze(1).tolist()]
        num = len(batch["group_id"])
        if bad:
            advice = f"Mend or leave out {', '.join(bad[:3])}: its steps would change no weight."
            return Finding(State.FAIL, f"{len(bad)} inputs of {num} samples are not", advice)
        return Finding(State.OK, f"all inputs of {num} samples", "")
