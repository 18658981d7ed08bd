"""A manager's certificate is renewed: its data key opens with whatever identity is on disk, also after a crash."""

import asyncio
import pathlib

import pytest

from skep import errors, ids, pb
from skep.daemon import daemon, settings
from skep.security import datakey, files, keys
from skep.security import identity as identities

RNG = ids.system_rng()


def identity(root: keys.Root, now: float) -> identities.Identity:
    key_pem = keys.new_key()
    cert_pem = keys.sign_node(
        keys.new_csr(key_pem), root=root, node_id="n", cluster_id="c", role=pb.NODE_ROLE_MANAGER, now=now
    )
    return keys.verified(key_pem=key_pem, cert_pem=cert_pem, root_pem=root.cert_pem, now=now)


@pytest.mark.parametrize("crash_at", ["", "rewrap", "save", "settle"])
def test_renewal_keeps_the_data_key(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, crash_at: str) -> None:
    async def main() -> None:
        machine = daemon.Daemon(
            settings.Settings(
                state_dir=tmp_path, socket=tmp_path / "s", name="n", runtime="memory", docker_socket="", labels={}
            )
        )
        now = machine.clock.now()
        root = keys.new_root(now=now)
        old, new = identity(root, now), identity(root, now)
        directory = tmp_path / "identity"
        settings.Membership(listen_addr="0.0.0.0:2377", advertise_addr="10.0.0.1:2377").save(tmp_path / "node.json")
        files.save(directory, old)
        key = datakey.make(directory, old, rng=RNG)
        machine._identity = old

        def crash(*_: object, **__: object) -> None:
            raise OSError("the power is gone")

        if crash_at:
            monkeypatch.setattr(files if crash_at == "save" else datakey, crash_at, crash)
            with pytest.raises(OSError, match="power"):
                machine._save_identity(new)
        else:
            machine._save_identity(new)
        there = files.load(directory, now=now)
        assert there is not None
        assert there == (old if crash_at in {"rewrap", "save"} else new)
        assert datakey.load(directory, there) == key
        if not crash_at:
            with pytest.raises(errors.Denied):
                datakey.load(directory, old)

    asyncio.run(main())
