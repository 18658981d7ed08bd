"""Join tokens: their shape, and that nothing ever repeats them."""

import hashlib
import re

import hypothesis
import pytest
from hypothesis import strategies

from skep import errors, ids
from skep.security import keys, tokens

ROOT = keys.new_root(now=1_800_000_000.0).cert_pem
OTHER = keys.new_root(now=1_800_000_000.0).cert_pem


@hypothesis.given(strategies.integers(min_value=0))
def test_what_is_made_is_parsed(seed: int) -> None:
    secret = tokens.new_secret(ids.seeded_rng(seed))
    text = tokens.make(root_pem=ROOT, secret=secret)
    assert re.fullmatch(r"SKPTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", text)
    token = tokens.parse(f" {text}\n")
    assert token.is_for(ROOT)
    assert not token.is_for(OTHER)
    assert token.opens(secret)
    assert secret not in repr(token)


def test_digest_is_of_the_pem_and_survives_another_encoding_of_it() -> None:
    number = int(tokens.digest(ROOT), 36)
    assert number == int.from_bytes(hashlib.sha256(ROOT).digest(), "big")
    assert tokens.digest(b"a comment\r\n" + ROOT.replace(b"\n", b"\r\n")) == tokens.digest(ROOT)


@hypothesis.given(strategies.text(max_size=120))
def test_malformed_tokens_are_invalid_and_not_repeated(text: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        tokens.parse(text)
    assert caught.value.message == "invalid join token: it must look like SKPTKN-1-<50 characters>-<25 characters>"


@pytest.mark.parametrize("change", ["upper", "short", "long", "version", "swarm", "unicode"])
def test_near_misses_are_invalid(change: str) -> None:
    secret = tokens.new_secret(ids.seeded_rng(1))
    text = tokens.make(root_pem=ROOT, secret=secret)
    broken = {
        "upper": text.upper(),
        "short": text[:-1],
        "long": text + "0",
        "version": text.replace("-1-", "-2-", 1),
        "swarm": text.replace("SKPTKN", "SWMTKN"),
        "unicode": text[:-1] + "\u0663",
    }[change]
    with pytest.raises(errors.Invalid) as caught:
        tokens.parse(broken)
    assert secret[:8] not in caught.value.message
    assert caught.value.__cause__ is None


def test_an_empty_secret_opens_nothing() -> None:
    token = tokens.Token(digest=tokens.digest(ROOT), secret="")
    assert not token.opens("")
