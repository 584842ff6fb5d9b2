"""What other people's hubs do, and hostile ones: mirrors, proxies, and servers that only look like the hub."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from blocks.errors import Refused, SkyferryError, Unavailable, Unsupported
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.processes import free_port
from blocks.ports.hub import Model, ModelFile
from tests.hubs import COMMIT, REPO, SHA1, SHA256, Asked, Said, Server, as_json, describing, entry, large, serving

FILE = ModelFile("model.gguf", 4, SHA256, SHA1)
MODEL = Model(REPO, COMMIT, (FILE,), None)


def hub_at(server: Server, **settings: object) -> HuggingFaceHub:
    return HuggingFaceHub.model_validate({"endpoint": server.url, **settings})


def looked_up(say: Callable[[Asked], Said], revision: str = "main", **settings: object) -> Model:
    with serving(say) as server:
        return hub_at(server, **settings).look_up(REPO, revision)


def read_part(hub: HuggingFaceHub, start: int = 0, size: int = 4) -> bytes:
    buffer = bytearray(size)
    hub.read_part(MODEL, FILE, start, memoryview(buffer))
    return bytes(buffer)


# --- What a hub says of itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "commit",
    [
        None,
        "",
        "main",
        "1" * 39,
        "1" * 41,
        "1" * 64,
        "g" * 40,
        "../" + "1" * 37,
        1,
        ["1" * 40],
        f"{'1' * 40}\n",
        "A" * 40,
    ],
)
def test_a_commit_is_40_hexadecimal_digits(commit: object) -> None:
    """It becomes a part of keys and of addresses."""
    with pytest.raises(Refused, match="as the commit"):
        looked_up(describing(entry("a.txt"), about={"sha": commit}))


def test_another_commit_than_the_one_asked_for_is_refused() -> None:
    """Whoever pins a commit gets that or nothing; spelt in capitals it is that as well."""
    with pytest.raises(Refused, match="that very commit"):
        looked_up(describing(entry("a.txt")), "4" * 40)
    assert looked_up(describing(entry("a.txt"), about={"sha": "abcd" * 10}), "ABCD" * 10).commit == "abcd" * 10


@pytest.mark.parametrize(
    "path",
    [
        None, "", 7, "..", "../x", "a/../../x", "a/..", "./a", "a/./b", "/etc/passwd", "a//b", "a/", "a\\b", "..\\x",
        "a\nb", "a\x00b", "a\x7f", "a\u202eb", "a\u2028b", "a\u200bb", "a\ud800", "x" * 256,
        "/".join(["abcdefgh"] * 100),
        "skyferry-manifest.json", "x/skyferry-manifest.json", "X/Skyferry-Manifest.JSON", "skyferry-manifest.json/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [entry, large], ids=["small", "large"])
def test_a_path_stays_within_the_model(path: Any, listed: Callable[[Any], dict[str, object]]) -> None:
    """It becomes a key of stores, and a file of directories and machines."""
    with pytest.raises(Refused, match="cannot be believed") as refusal:
        looked_up(describing(listed(path)))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "path", ["a b/ü.txt", "模型/权重.safetensors", "a..b", ".gitattributes", "...", "a?b#c%20", "~"]
)
def test_other_paths_are_paths(path: str) -> None:
    """Blanks, letters of any script, and dots that lead nowhere; they are asked for as they are called."""
    with serving(describing(entry(path), resolve=lambda _: Said(body=b"data"))) as server:
        hub = hub_at(server)
        model = hub.look_up(REPO, "main")
        assert [file.path for file in model.files] == [path]
        assert b"".join(hub.read(model, model.files[0])) == b"data"
    assert not {"?", "#"} & {*server.paths[-1]}


@pytest.mark.parametrize("size", [None, -1, 1.5, "4", True, 1 << 60, [4]])
def test_a_size_is_a_number_of_bytes(size: object) -> None:
    """Parts, buffers and prices are computed from it."""
    with pytest.raises(Refused, match=r"as the size of a\.txt"):
        looked_up(describing({**entry("a.txt"), "size": size}))
    with pytest.raises(Refused, match=r"as the size of a\.gguf"):
        looked_up(describing({**entry("a.gguf"), "lfs": {"oid": SHA256, "size": size}}))


@pytest.mark.parametrize("wrong", [None, "", "3" * 63, "3" * 65, "z" * 64, 3, ["3" * 64]])
def test_a_hash_has_its_length(wrong: object) -> None:
    """By another nobody can check what comes."""
    with pytest.raises(Refused, match=r"as the hash of a\.gguf"):
        looked_up(describing(large("a.gguf", oid=wrong)))
    with pytest.raises(Refused, match=r"as the hash of a\.txt"):
        looked_up(describing(entry("a.txt", oid=wrong)))


@pytest.mark.parametrize("lfs", ["x", [], 7, {"size": 4}])
def test_large_files_are_described(lfs: object) -> None:
    """What is no description of one is no file in git either."""
    with pytest.raises(Refused, match=r"a\.gguf"):
        looked_up(describing(entry("a.gguf", lfs=lfs)))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((entry("a"), entry("a", 5)), "lists a twice"),
        ((entry("a"), entry("a/b")), "lists a as a file and as the folder of a/b"),
        (({"type": "symlink", "path": "a"},), "as a 'symlink'"),
        (({"type": ["file"], "path": "a"},), "which nobody knows how to mirror"),
        (({"type": {}, "path": "a"},), "which nobody knows how to mirror"),
        (("a",), "'a' among the files"),
        ((None,), "None among the files"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(entries: tuple[Any, ...], words: str) -> None:
    """Some stores would keep one of the two, others none."""
    with pytest.raises(Refused, match=words):
        looked_up(describing(*entries))


@pytest.mark.parametrize(
    "said", [b"<html>", b"", b"[]", b"7", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b"1" * 5000]
)
def test_what_is_no_description_is_refused(said: bytes) -> None:
    """Pages, other JSON, and JSON that would break a parser."""
    with pytest.raises(Refused, match=r"no hub|cannot be believed"):
        looked_up(lambda _: Said(body=said))


def test_an_answer_without_an_end_is_refused() -> None:
    """Memory is not the hub's to fill."""
    with pytest.raises(Refused, match="goes on after"):
        looked_up(lambda _: Said(body=b" " * (33 << 20)))


def test_a_licence_is_a_short_line() -> None:
    """It stands in manifests and on boards."""
    tags = ["license:mit\n| x", 7, None, "license:" + "x" * 500, "region:eu"]
    found = looked_up(describing(entry("a.txt"), about={"tags": tags})).license
    assert found is not None
    assert found.startswith("mit | x, xxx")
    assert len(found) < 250
    assert looked_up(describing(entry("a.txt"), about={"tags": "license:mit"})).license is None


@pytest.mark.parametrize(
    ("repo", "revision"),
    [
        ("../x", "main"), ("org/../x", "main"), ("org/model?x", "main"), ("org/model\n", "main"), ("a/b/c", "main"),
        ("org/.git", "main"), ("", "main"), ("org/model", ""), ("org/model", "a/../b"), ("org/model", "a\nb"),
        ("org/model", "a b"), ("org/mödel", "main"), ("https://x/y", "main"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_not_asked_for(repo: str, revision: str) -> None:
    """It would become another address, or another key."""
    with serving(describing(entry("a.txt"))) as server, pytest.raises(Refused, match="is no name"):
        hub_at(server).look_up(repo, revision)
    assert server.asked == []


@pytest.mark.parametrize("revision", ["refs/pr/1", "v1.0-rc+2", "a?b#c"])
def test_a_revision_is_one_word_of_the_address(revision: str) -> None:
    """Whatever it is called."""
    with serving(describing(entry("a.txt"))) as server:
        hub_at(server).look_up(REPO, revision)
    assert server.paths[0].startswith("/api/models/org/model/revision/")
    assert not {"?", "#"} & {*server.paths[0]}
    assert server.paths[0].count("/") == 6


def test_no_more_comes_than_was_promised() -> None:
    """A file that goes on and on is cut off at its size; one that ends before it is worth another try."""
    with serving(lambda _: Said(body=b"data and more")) as server:
        with pytest.raises(Refused, match="more than the 4 bytes"):
            b"".join(hub_at(server).read(MODEL, FILE))
        assert read_part(hub_at(server)) == b"data"
    with serving(lambda _: Said(body=b"da")) as server, pytest.raises(Unavailable, match="fewer than the 4 bytes"):
        b"".join(hub_at(server).read(MODEL, FILE))


def test_an_answer_without_a_length_may_have_broken_off() -> None:
    """So its half is no sign that something else than a hub answers."""
    with pytest.raises(Unavailable, match="or broke off; try again later"):
        looked_up(lambda _: Said(body=b'{"sha": "11', as_it_is=True))


@pytest.mark.parametrize("endpoint", ["https://hub..example", "https://-", "https://me%3Apa55word%40hub.example"])
def test_an_endpoint_that_is_no_address_is_refused_in_words(endpoint: str) -> None:
    """It was typed so, and nobody is asked; what may be a password in it is not repeated."""
    with pytest.raises(Refused, match="whose host is no name; correct the block") as refusal:
        HuggingFaceHub(endpoint=endpoint).look_up(REPO, "main")
    assert "pa55word" not in str(refusal.value)


# --- Lists of files -------------------------------------------------------------------------------------------------


def paged(
    pages: list[list[dict[str, object]]], link: str, about: dict[str, object] | None = None
) -> Callable[[Asked], Said]:
    """A tree on several pages; `link` says where the next one is, by `{hub}` and `{cursor}`."""
    describe = describing(about=about)

    def say(asked: Asked) -> Said:
        if "/tree/" not in asked.path:
            return describe(asked)
        cursor = int(asked.path.partition("cursor=")[2] or 0)
        where = link.format(hub=f"http://{asked.headers['host']}", cursor=cursor + 1)
        return as_json(pages[cursor], **({"Link": where} if cursor + 1 < len(pages) else {}))

    return say


PAGES = [[entry(f"{page}-{number}") for number in range(3)] for page in range(4)]


@pytest.mark.parametrize(
    "link",
    [
        '<{hub}/api/models/org/model/tree/main?cursor={cursor}>; rel="next"',
        "<https://huggingface.co/api/models/org/model/tree/main?recursive=true&cursor={cursor}>; rel=next",
        '<http://127.0.0.1:1/elsewhere?cursor={cursor}>; rel="next"',
        '</api?cursor={cursor}#x>; rel="next"',
        '<?cursor={cursor}>; title="x"; rel="next last"',
        '<https://me:pw@evil.example/?x=0>; rel="prev", <?cursor={cursor}>; rel="next"',
        '<?cursor={cursor}>; Rel="NEXT"',
        '<?a=b;c&cursor={cursor}>; title="x, y; z"; rel="next"',
        '<?cursor={cursor}>; rel="next"\r\nLink: <https://cache.example>; rel=preconnect',
    ],
)
def test_the_next_page_is_asked_of_the_hub_itself(link: str) -> None:
    """Mirrors hand on the address of the hub that they mirror: behind them it cannot be reached, nor may it be."""
    with serving(paged(PAGES, link)) as server:
        model = hub_at(server, token="very-secret").look_up(REPO, "main")
    assert {file.path for file in model.files} == {f"{page}-{number}" for page in range(4) for number in range(3)}
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer very-secret"}
    assert all(f"/tree/{COMMIT}?" in path for path in server.paths[1:])


def test_pages_without_an_end_are_refused() -> None:
    """The same cursor again, or new ones for ever."""
    with pytest.raises(Refused, match="without an end"):
        looked_up(paged([*PAGES, *PAGES], '<?cursor=1>; rel="next"'))


@pytest.mark.parametrize("link", ['</api/models/org/model/tree/page-2>; rel="next"', "<>; rel=next", "<#x>;rel=next"])
def test_a_next_page_that_cannot_be_asked_for_is_no_end(link: str) -> None:
    """Who says that there are more files has not listed all."""
    with pytest.raises(Refused, match="more files, and not by which query"):
        looked_up(paged(PAGES, link))


def test_what_is_named_elsewhere_and_not_listed_is_missing() -> None:
    """A proxy that drops the address of the next page has listed a thousand of more: that is no whole model."""
    named = [{"rfilename": f"{page}-{number}"} for page in range(4) for number in range(3)]
    with pytest.raises(Refused, match="leaves out 9 that it names elsewhere, such as 1-0"):
        looked_up(describing(*PAGES[0], about={"siblings": named}))


def test_folders_that_were_not_opened_are_opened() -> None:
    """Some hubs do not know `recursive`; git has no empty folder, so one without a file gives that away."""
    folders = {
        "": [entry("a.txt"), {"type": "directory", "path": "sub dir", "oid": SHA1}],
        "sub%20dir": [entry("sub dir/b.txt"), {"type": "directory", "path": "sub dir/deep"}],
        "sub%20dir%2Fdeep": [entry("sub dir/deep/c.txt")],
    }

    def say(asked: Asked) -> Said:
        if "/tree/" not in asked.path:
            return describing()(asked)
        return as_json(folders[asked.path.partition("?")[0].partition(COMMIT)[2].lstrip("/")])

    assert {file.path for file in looked_up(say).files} == {"a.txt", "sub dir/b.txt", "sub dir/deep/c.txt"}


def test_folders_that_were_opened_are_not_opened_again() -> None:
    """Though their files may come on another page than they do themselves."""
    pages = [[{"type": "directory", "path": "a"}, {"type": "directory", "path": "a/b"}], [entry("a/b/c.txt")]]
    with serving(paged(pages, '<?cursor={cursor}>; rel="next"')) as server:
        hub_at(server).look_up(REPO, "main")
    assert len(server.asked) == 3


def without_tree(status: int, siblings: list[dict[str, object]]) -> Callable[[Asked], Said]:
    def say(asked: Asked) -> Said:
        return Said(status) if "/tree/" in asked.path else describing(about={"siblings": siblings})(asked)

    return say


SIBLINGS = [
    {"rfilename": "a.txt", "size": 4, "blobId": SHA1},
    {"rfilename": "a.gguf", "size": 4, "blobId": SHA1, "lfs": {"sha256": SHA256, "size": 4}},
]


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_hub_without_a_tree_names_its_files_elsewhere(status: int) -> None:
    """As proxies do that know only what the hub's own library asks for; but not all of many."""
    assert looked_up(without_tree(status, SIBLINGS)).files == (
        ModelFile("a.txt", 4, None, SHA1),
        ModelFile("a.gguf", 4, SHA256, SHA1),
    )
    many = [{"rfilename": f"{number}", "size": 4, "blobId": SHA1} for number in range(1001)]
    with pytest.raises(Refused, match="more may be missing"):
        looked_up(without_tree(status, many))
    with pytest.raises(Refused, match=r"as the size of model\.gguf"):
        looked_up(without_tree(status, [{"rfilename": "model.gguf"}]))


def test_a_tree_that_is_busy_is_no_missing_tree() -> None:
    """Nor is one that may not be read."""
    with pytest.raises(Unavailable, match="503"):
        looked_up(without_tree(503, SIBLINGS))
    with pytest.raises(Refused, match="403"):
        looked_up(without_tree(403, SIBLINGS))


def test_fields_that_nobody_needs_may_be_missing() -> None:
    """`id`, `pointerSize`, `lfs.oid` where there is `sha256`, the type, and the pointer's own hash."""

    def say(asked: Asked) -> Said:
        if "/tree/" in asked.path:
            return as_json(
                [
                    {"path": "a.txt", "size": 4, "oid": SHA1},
                    {"type": "file", "path": "b.gguf", "size": 4, "oid": SHA1, "lfs": {"sha256": SHA256.upper()}},
                    {"type": "file", "path": "c.gguf", "size": 134, "lfs": {"oid": f"sha256:{SHA256}", "size": 4}},
                ]
            )
        return as_json({"sha": COMMIT})

    assert looked_up(say).files == (
        ModelFile("a.txt", 4, None, SHA1),
        ModelFile("b.gguf", 4, SHA256, SHA1),
        ModelFile("c.gguf", 4, SHA256, "06092abcdac95765549275c4dbe72792cef7d999"),
    )


# --- Gated models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [Said(302, {"Location": "http://127.0.0.1:1/a"}), Said(200), Said(405), Said(501)])
def test_a_gated_model_is_asked_for_before_it_is_read(said: Said) -> None:
    """By the answer to a download of its largest file, as every hub has it; nobody needs `/auth-check`."""
    files = (entry("README.md", 9), large("model.gguf", 99))
    with serving(describing(*files, about={"gated": "auto"}, resolve=lambda _: said)) as server:
        hub_at(server).look_up(REPO, "main")
    assert (server.asked[-1].method, server.paths[-1]) == ("HEAD", f"/{REPO}/resolve/{COMMIT}/model.gguf")
    with serving(describing(*files)) as server:
        hub_at(server).look_up(REPO, "main")
    assert {asked.method for asked in server.asked} == {"GET"}


def test_a_gated_model_that_may_not_be_read_is_refused_at_once() -> None:
    """With the page on which its licence is accepted."""
    refusal = Said(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"})
    with pytest.raises(Refused, match=r"org/model is gated: accept its licence at http://.*/org/model .*restricted"):
        looked_up(describing(large("model.gguf"), about={"gated": "manual"}, resolve=lambda _: refusal))


# --- Answers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"RateLimit": '"api";r=0;t=25'}, 25),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"}, 0),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_says_how_long_to_wait(status: int, headers: dict[str, str], seconds: float | None) -> None:
    """In each of its ways, for a look-up and for a part."""
    with serving(lambda _: Said(status, headers)) as server:
        for act in (lambda: hub_at(server).look_up(REPO, "main"), lambda: read_part(hub_at(server))):
            with pytest.raises(Unavailable, match=str(status)) as busy:
                act()
            assert busy.value.after_seconds == seconds


@pytest.mark.parametrize(
    ("status", "headers", "error", "words"),
    [
        (416, {}, Unavailable, "fewer bytes than the hub promised"),
        (404, {}, Refused, "not that of it"),
        (404, {"X-Error-Code": "EntryNotFound"}, Refused, r"has no model\.gguf"),
        (
            401,
            {"X-Error-Message": "Invalid credentials\r\n\tin\x1b header"},
            Refused,
            "401 .*Invalid credentials in header",
        ),
        (451, {"X-Error-Message": "x" * 9000}, Refused, "451"),
        (304, {}, Refused, "304"),
        (501, {}, Refused, "501"),
        (204, {}, Refused, "204"),
        (425, {}, Unavailable, "425"),
        (599, {}, Unavailable, "599"),
    ],
)
def test_the_status_comes_first(status: int, headers: dict[str, str], error: type[SkyferryError], words: str) -> None:
    """What it says decides, and what it says in words is one short line."""
    with serving(lambda _: Said(status, headers)) as server, pytest.raises(error, match=words) as raised:
        read_part(hub_at(server))
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_no_ranges_at_all_are_told_as_that() -> None:
    """A part in the middle of a file cannot be had from such a hub; a whole file can."""
    with serving(lambda _: Said(body=b"data")) as server:
        assert read_part(hub_at(server)) == b"data"
        with pytest.raises(Unsupported, match=r"sends whole files only.*model\.gguf of org/model"):
            read_part(hub_at(server), 2, 2)


# --- Hosts of content -----------------------------------------------------------------------------------------------


def to(url: Callable[[], str]) -> Callable[[Asked], Said]:
    return lambda _: Said(302, {"Location": url()})


@pytest.mark.parametrize("status", [403, 451, 503])
def test_the_host_that_failed_is_named(status: int) -> None:
    """A network that blocks the content's host is not the hub's fault; the signature is nobody's business."""
    with (
        serving(lambda _: Said(status), "127.0.0.2") as content,
        serving(to(lambda: f"{content.url}/a?X-Amz-Signature=very-secret")) as server,
    ):
        for act in (lambda: read_part(hub_at(server)), lambda: b"".join(hub_at(server).read(MODEL, FILE))):
            with pytest.raises(
                (Refused, Unavailable), match=f"{content.url} answered {status} for model.gguf"
            ) as error:
                act()
            assert "very-secret" not in str(error.value)


def test_a_host_of_content_that_is_away_is_named() -> None:
    """And not the hub, which answered."""
    port = free_port()
    with (
        serving(to(lambda: f"http://127.0.0.2:{port}/a?sig=very-secret")) as server,
        pytest.raises(Unavailable, match=f"http://127.0.0.2:{port} did not send") as error,
    ):
        read_part(hub_at(server))
    assert "very-secret" not in str(error.value)


def test_an_address_whose_host_died_is_asked_for_anew() -> None:
    """The next try asks the hub, which knows another; as long as it serves, the hub is not asked."""
    goal: list[str] = []
    with (
        serving(lambda _: Said(206, body=b"new!"), "127.0.0.3") as other,
        serving(lambda _: Said(206, {"Connection": "close"}, b"data"), "127.0.0.2") as content,
        serving(to(lambda: goal[-1])) as server,
    ):
        goal.append(content.url)
        hub = hub_at(server)
        assert [read_part(hub, start) for start in (0, 4, 8)] == [b"data"] * 3
        assert len(server.asked) == 1
        content.stop()
        goal.append(other.url)
        with pytest.raises(Unavailable, match=content.url):
            read_part(hub)
        assert read_part(hub) == b"new!"
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [403, 404, 416, 429, 503])
def test_an_address_that_is_refused_is_asked_for_anew(status: int) -> None:
    """At once where its signature may have expired; the next time where its host is busy."""
    answers = [Said(206, body=b"data"), Said(status, {"Retry-After": "3"}), Said(206, body=b"new!")]
    with serving(lambda _: answers.pop(0), "127.0.0.2") as content, serving(to(lambda: content.url)) as server:
        hub = hub_at(server)
        read_part(hub)
        if status in (429, 503):
            with pytest.raises(Unavailable) as busy:
                read_part(hub)
            assert busy.value.after_seconds == 3
        assert read_part(hub) == b"new!"
    assert len(server.asked) == 2


def test_an_address_is_for_whoever_was_given_it() -> None:
    """Another token, and none, are sent to the hub first: it knows who may read."""
    with serving(lambda _: Said(206, body=b"data"), "127.0.0.2") as content, serving(to(lambda: content.url)) as server:
        for token in ("one-token", "two-token", None, "one-token"):
            assert read_part(hub_at(server, token=token)) == b"data"
    assert [asked.headers.get("authorization") for asked in server.asked] == [
        "Bearer one-token",
        "Bearer two-token",
        None,
    ]


def test_nobody_is_led_inwards_by_any_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub outside, here one behind a proxy, to what listens on this machine, unless a person has named it."""
    with serving(lambda _: Said(206, body=b"data")) as inside, serving(to(lambda: f"{inside.url}/col/delete")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub = HuggingFaceHub(endpoint="http://outside.example")
        for act in (
            lambda: hub.look_up(REPO, "main"),
            lambda: read_part(hub),
            lambda: b"".join(hub.read(MODEL, FILE)),
        ):
            with pytest.raises(Refused, match=r"name 127\.0\.0\.1 among the block's content_hosts"):
                act()
        assert inside.asked == []
        named = HuggingFaceHub(endpoint="http://outside.example", content_hosts=["127.0.0.1"])
        assert [read_part(named), read_part(named)] == [b"data"] * 2


def test_a_renamed_model_is_followed() -> None:
    """The hub redirects its old name, on itself, with the token."""

    def say(asked: Asked) -> Said:
        if "/old/name/" in asked.path:
            return Said(307, {"Location": asked.path.replace("/old/name/", f"/{REPO}/")})
        return describing(entry("a.txt"))(asked)

    with serving(say) as server:
        assert hub_at(server, token="very-secret").look_up("old/name", "main").repo == "old/name"
    assert {asked.headers.get("authorization") for asked in server.asked} == {"Bearer very-secret"}


def test_an_old_block_is_read() -> None:
    """One that was saved before there were content hosts."""
    assert HuggingFaceHub.model_validate(json.loads('{"endpoint": "http://a", "token": null}')).content_hosts == []
