"""The HTTP client: where it dials, how patient it is, and what errors become."""

import pathlib
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest

from skep import client, errors
from tests.skep.cli import fake_skepd, objects


@pytest.fixture
def world() -> Iterator[fake_skepd.FakeSkepd]:
    with tempfile.TemporaryDirectory(prefix="skep-") as directory, fake_skepd.serve(pathlib.Path(directory)) as made:
        yield made


@pytest.fixture
def dial(world: fake_skepd.FakeSkepd) -> Iterator[client.Client]:
    made = client.Client(world.host, wall=world.clock, pause=world.clock.pause)
    yield made
    made.close()


def failing(times: int, problem: fake_skepd.Answer | None) -> Callable[[fake_skepd.Request], fake_skepd.Answer | None]:
    """A route that fails so often, and then works."""
    left = [times]

    def route(request: fake_skepd.Request) -> fake_skepd.Answer | None:
        left[0] -= 1
        return problem if left[0] >= 0 else (200, {"ID": "done"})

    return route


NO_LEADER = (503, {"message": "no leader is known at the moment"})


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "bad", errors.Invalid),
        (403, "no", errors.Denied),
        (404, "service x not found", errors.NotFound),
        (409, "name taken", errors.AlreadyExists),
        (500, "rpc error: code = Unknown desc = update out of sequence", errors.Conflict),
        (501, "renaming services is not supported", errors.Unimplemented),
        (503, "This node is not a swarm manager. Use ..", errors.FailedPrecondition),
        (503, "no leader", errors.Unavailable),
        (500, "boom", errors.SkepError),
    ],
)
def test_statuses_become_errors_of_our_tree(status: int, message: str, kind: type[errors.SkepError]) -> None:
    problem = client.error_of(status, f'{{"message": "{message}"}}'.encode())
    assert isinstance(problem, kind)
    assert problem.message == message.rpartition(" desc = ")[2]


def test_an_error_without_json_is_shown_as_it_is() -> None:
    assert client.error_of(500, b"<html>oops").message == "<html>oops"
    assert "502" in client.error_of(502, b"").message


@pytest.mark.parametrize("host", ["tcp://1.2.3.4:1", "unix://", "unix://relative", "", "nonsense"])
def test_a_wrong_host_names_the_right_form(host: str) -> None:
    with pytest.raises(errors.Invalid, match="unix:///path"):
        client.Client(host)


def test_a_missing_socket_is_said_at_once_and_with_the_remedy(tmp_path: pathlib.Path) -> None:
    def never(seconds: float) -> None:
        raise AssertionError("waited for a daemon that was never there")

    dialled = client.Client(f"unix://{tmp_path}/none.sock", pause=never)
    with pytest.raises(errors.Unavailable, match=r"does not exist.*SKEP_HOST"):
        dialled.get("/info")


def test_a_socket_without_listener_is_told_apart(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(errors.Unavailable, match="nobody listens"):
        client.Client(str(path)).get("/info")


def test_waits_out_a_change_of_leader(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["POST", "/thing"] = failing(5, NO_LEADER)
    assert dial.request("POST", "/thing", body={}).body == {"ID": "done"}
    assert dial.attempts == 6


def test_patience_ends(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["GET", "/thing"] = failing(10_000, NO_LEADER)
    with pytest.raises(errors.Unavailable, match="no leader"):
        dial.get("/thing")
    assert world.clock.now() - objects.NOW == pytest.approx(client.PATIENCE_S, abs=0.5)


def test_an_impatient_request_is_tried_once(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["POST", "/swarm/init"] = failing(1, NO_LEADER)
    with pytest.raises(errors.Unavailable):
        dial.request("POST", "/swarm/init", body={}, patient=False)
    assert len(world.requests) == 1


def test_not_a_manager_is_not_waited_for(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["GET", "/thing"] = failing(1, (503, {"message": "This node is not a swarm manager."}))
    with pytest.raises(errors.FailedPrecondition):
        dial.get("/thing")
    assert len(world.requests) == 1


def test_a_read_that_breaks_off_is_repeated(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    dial.get("/info")  # leaves a connection that is kept alive
    world.routes["GET", "/thing"] = failing(2, None)
    assert dial.get("/thing") == {"ID": "done"}


def test_a_write_that_breaks_off_is_never_repeated(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["POST", "/thing"] = failing(1, None)
    with pytest.raises(errors.Unavailable, match="may or may not have been made"):
        dial.request("POST", "/thing", body={})
    assert len(world.requests) == 1


def test_reads_share_a_connection(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    for _ in range(3):
        assert dial.get("/services") == []
    assert [request.path for request in world.requests] == ["/services"] * 3


def test_references_are_quoted_and_never_empty(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    assert client.quote("a/b:c d") == "a%2Fb%3Ac%20d"
    with pytest.raises(errors.Invalid):
        client.quote("  ")
    with pytest.raises(errors.NotFound):
        dial.get(f"/services/{client.quote('../nodes')}")


def test_filters_are_gos_form() -> None:
    assert client.filters_of({"service": ["a", "b"], "none": []}) == {"filters": '{"service": {"a": true, "b": true}}'}
    assert client.filters_of({}) == {}


def test_streams_until_the_server_ends(world: fake_skepd.FakeSkepd, dial: client.Client) -> None:
    world.routes["GET", "/logs"] = lambda request: (200, b"x" * 200_000)
    assert sum(len(chunk) for chunk in dial.stream("/logs")) == 200_000
    with pytest.raises(errors.NotFound):
        list(dial.stream("/nowhere"))
