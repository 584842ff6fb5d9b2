"""Where an address leads, and where one may lead to another."""

import pytest

from blocks.http.origins import Address, is_within_reach, reach_of

HUB = "https://hub.example/org/model?x=1"


@pytest.mark.parametrize(
    ("location", "goal"),
    [
        ("/other", "https://hub.example/other"),
        ("other", "https://hub.example/org/other"),
        ("?cursor=2", "https://hub.example/org/model?cursor=2"),
        ("//cdn.example/a", "https://cdn.example/a"),
        ("HTTPS://CDN.Example/A", "https://cdn.example/A"),
        ("https://hub.example:443/a", "https://hub.example/a"),
        ("https://hub.example:8443/a", "https://hub.example:8443/a"),
        ("https://cdn.example/a#part", "https://cdn.example/a"),
        ("https://cdn.example/a b?c=ü", "https://cdn.example/a%20b?c=%FC"),
        ("https://cdn.example/a%2Fb?X-Amz-Signature=a%3D", "https://cdn.example/a%2Fb?X-Amz-Signature=a%3D"),
        ("https://[2001:DB8::1]/a", "https://[2001:db8::1]/a"),
        ("https:///a", "https://hub.example/a"),
        ("  https://cdn.example/a  ", "https://cdn.example/a"),
        ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
    ],
)
def test_a_redirect_leads_on(location: str, goal: str) -> None:
    """Relative or whole, in whatever spelling, it is one address, with the origin that it really has."""
    led = Address.of(HUB).led_to(location)
    assert f"{led.origin}{led.target}" == goal


@pytest.mark.parametrize(
    "location",
    [
        "http://hub.example/org/model",
        "http://cdn.example/a",
        "HTTP://cdn.example/a",
        "https://me:secret@cdn.example/a",
        "https://secret@hub.example/a",
        "//me:secret@cdn.example/a",
        "https://cdn.example/a\r\n X: secret",
        "https://cdn.example/\ta",
        "https://cdn.example\\@hub.example/a",
        "ftp://cdn.example/secret",
        "file:///etc/secret",
        "javascript:secret",
        "https://cdn.example:99999/secret",
        "https://cdn.example:x/secret",
        "https://[::1/secret",
        "https://cdn_%41.example/secret",
        "https://-/secret",
        "https://a b/secret",
        "https://a..b/secret",
        f"https://{'a' * 64}.example/secret",
        "https://cdn.example/" + "secret" * 4000,
    ],
)
def test_nobody_follows_a_redirect_to(location: str) -> None:
    """Out of TLS, with a user in it, over several lines, to what is no HTTP or no host; its words hold none of it."""
    with pytest.raises(ValueError, match=r"address|https") as refusal:
        Address.of(HUB).led_to(location)
    assert "secret" not in str(refusal.value)


def test_as_text_it_has_no_query() -> None:
    """Whoever has a signed address may read."""
    assert str(Address.of("https://cdn.example/a?X-Amz-Signature=secret")) == "https://cdn.example/a"


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("64:ff9b::8.8.8.8", "public"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("168.63.129.16", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.0.0.1", "private"),
        ("172.31.0.1", "private"),
        ("192.168.1.1", "private"),
        ("192.0.0.192", "link-local"),
        ("0.1.2.3", "private"),
        ("240.0.0.1", "private"),
        ("255.255.255.255", "private"),
        ("198.18.0.1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("::127.0.0.1", "private"),
        ("64:ff9b::10.0.0.1", "private"),
        ("100.100.100.200", "shared"),
        ("0.0.0.0", "unspecified"),  # noqa: S104 - nothing binds to it
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("::ffff:127.0.0.1", "disguised"),
        ("::ffff:8.8.8.8", "disguised"),
        ("2002:7f00:1::", "disguised"),
        ("2001:0:1::1", "disguised"),
    ],
)
def test_from_where_an_address_can_be_reached(address: str, reach: str) -> None:
    """Clouds' metadata, carriers' networks, and addresses within addresses are told for what they are."""
    assert reach_of(address) == reach
    assert is_within_reach(goal=reach_of(address), origin="public") == (reach == "public")


def test_inwards_only_from_there() -> None:
    """A hub on loopback may have its content there; one on a private network may not look at loopback."""
    assert is_within_reach(goal="loopback", origin="loopback")
    assert is_within_reach(goal="private", origin="private")
    assert is_within_reach(goal="public", origin="private")
    assert not is_within_reach(goal="loopback", origin="private")
    assert not is_within_reach(goal="link-local", origin="private")
    assert not is_within_reach(goal="disguised", origin="disguised")
