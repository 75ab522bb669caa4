"""What ``fedddpm status`` shows."""

from __future__ import annotations

from pathlib import Path

from fedddpm.config import ClientConfig
from fedddpm.generation.round_pictures import FOLDER
from fedddpm.identity import Identity
from fedddpm.monitoring.rounds_table import FILE
from fedddpm.rounds.guards.alarm_guard import ringing
from fedddpm.rounds.guards.own_share import OwnShare
from fedddpm.state.report import RunReport, parameters_in, read_state
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.traffic import beside_fedavg, fedavg_bytes
from fedddpm_protocol.wire.api import RunState

_SHORT_PATIENCE_S = 5.0


def ask_aggregator(config: ClientConfig) -> RunState:
    """The aggregator's own view; TransportError if it does not answer within seconds."""
    identity = Identity.load(config.identity)
    network = config.network.model_copy(update={"patience_s": min(_SHORT_PATIENCE_S, config.network.patience_s)})
    member_id = config.member_id or identity.member_id
    with Connection(config.aggregator_url, identity, member_id, network) as connection:
        return FederationApi(connection).state(0, 0)


def status_rows(state_dir: Path, remote: RunState | str | None) -> list[tuple[str, str]]:
    """Name and value of each line; ``remote``: the aggregator's view, or why there is none, or nobody asked."""
    report = read_state(state_dir)
    rows = [
        ("institution", report.member_id or "not known before a roster holds it"),
        ("roster version", str(report.roster_version)),
    ]
    for run in report.runs:
        end = "finished" if run.finished else f"at round {run.next_round + 1}"
        rows += [
            ("run", f"{run.run} ({run.method}), {end}"),
            ("sent", f"{run.parameters_up:,} parameters, {run.bytes_up / 1e6:.2f} MB"),
            ("received", f"{run.parameters_down:,} parameters, {run.bytes_down / 1e6:.2f} MB"),
            *_rows_a_round(run),
            ("network", str(run.model)),
        ]
    rows += _rows_of_files(state_dir)
    if report.own_share is not None:
        share = OwnShare.from_json(report.own_share)
        rows.append(("own share of the mean", f"{share} in round {share.round + 1} of run {share.run}"))
    if report.alarms is not None:
        rows += [("alarm", text) for text in ringing(report.alarms)]
    if not report.runs:
        rows.append(("run", "none yet"))
    if report.unacknowledged:
        rows.append(("answers not yet acknowledged", str(report.unacknowledged)))
    if isinstance(remote, str):
        rows.append(("aggregator", remote))
    elif remote is not None:
        rows += _remote_rows(remote)
    return rows


def _rows_of_files(state_dir: Path) -> list[tuple[str, str]]:
    """The newest picture and the table of rounds, where there are such."""
    pictures = sorted((state_dir / FOLDER).glob("round-*.png"))
    table = state_dir / FILE
    rows = [("newest picture", str(pictures[-1]))] if pictures else []
    return [*rows, ("rounds in figures", str(table))] if table.is_file() else rows


def _rows_a_round(run: RunReport) -> list[tuple[str, str]]:
    """Bytes of a round beside those of naive FedAvg, once there was a round."""
    parameters = parameters_in(run.model)
    if not run.rounds or parameters is None:
        return []
    fedavg = fedavg_bytes(parameters)
    moved = beside_fedavg(run.bytes_up // run.rounds, run.bytes_down // run.rounds, fedavg)
    return [("on average a round", f"{moved}, which moves {fedavg / 1e6:.2f} MB in float32")]


def _remote_rows(remote: RunState) -> list[tuple[str, str]]:
    rows = [("aggregator", f"{remote.status}{f': {remote.reason}' if remote.reason else ''}")]
    if remote.run is not None:
        where = f"round {remote.round + 1} of {remote.rounds}, attempt {remote.attempt + 1}"
        rows.append(("its run", f"{remote.run} ({remote.method}), {where}"))
    for part, session in remote.sessions.items():
        done = f"{session.posted} of {session.cohort_size} done" if session.cohort_size else f"{session.posted} so far"
        rows.append((f"phase of {part}", f"{session.phase.value}, {done}"))
    return rows
