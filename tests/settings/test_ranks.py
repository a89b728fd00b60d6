"""Settings of ranks on other machines."""

from pathlib import Path

import pytest

from trioserve.errors import SettingsError
from trioserve.settings import SECRET_VARIABLES, load_settings, split_rank_address

KEY = "k" * 16
JOINED: dict[str, object] = {"rank_listen": "0.0.0.0:7000", "rank_key": KEY, "tensor_parallel_size": 4}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_rank_is_here_and_the_others_join_unless_it_is_said_otherwise() -> None:
    assert load_settings(tensor_parallel_size=4).num_local_ranks == 4
    assert load_settings(**JOINED).num_local_ranks == 1
    assert load_settings(**JOINED, local_ranks=2).num_local_ranks == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"rank_key": None},
            "rank_listen = '0.0.0.0:7000' needs a key that ranks must know: give rank_key or",
        ),
        ({"rank_key": "short"}, r"rank_key = \*+: a key has at least 16 characters, this one has 5"),
        (
            {"rank_key_file": "/k"},
            "rank_key and rank_key_file are two places of one key: leave one of them out",
        ),
        ({"rank_listen": None, "local_ranks": 2}, "local_ranks = 2 needs rank_listen, where the others join"),
        ({"rank_listen": "7000"}, "rank_listen = '7000': it should be HOST:PORT, such as 0.0.0.0:7000"),
        ({"rank_listen": "a:70000"}, "rank_listen = 'a:70000': it should be HOST:PORT"),
        ({"tensor_parallel_size": 1}, "tensor_parallel_size = 1 and 1 of them here leaves none to join"),
        ({"local_ranks": 4}, "tensor_parallel_size = 4 and 4 of them here leaves none to join"),
        (
            {"rank_silence_timeout_s": 1},
            "rank_silence_timeout_s = 1: input should be greater than or equal to 3",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    given = {name: value for name, value in (JOINED | changes).items() if value is not None}
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**given)


def test_the_key_may_be_in_a_file_and_is_in_no_message() -> None:
    Path("key").write_text(f"  {KEY}\n", encoding="utf-8")
    settings = load_settings(**_from_file("key"))
    assert settings.read_rank_key() == KEY.encode()
    Path("key").write_text("short", encoding="utf-8")
    with pytest.raises(
        SettingsError, match="rank_key_file = 'key': a key has at least 16 characters, this one has 5"
    ):
        settings.read_rank_key()
    Path("key").unlink()
    with pytest.raises(SettingsError, match="rank_key_file = 'key': No such file or directory"):
        settings.read_rank_key()
    assert KEY not in repr(load_settings(**JOINED))
    assert "TRIOSERVE_RANK_KEY" in SECRET_VARIABLES


def _from_file(name: str) -> dict[str, object]:
    return {"rank_listen": "0.0.0.0:7000", "tensor_parallel_size": 4, "rank_key_file": name}


def test_an_ipv6_address_is_in_brackets() -> None:
    assert split_rank_address("[::1]:7000") == ("::1", 7000)
    assert split_rank_address("leader.pods:7000") == ("leader.pods", 7000)
