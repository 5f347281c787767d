"""Text is escaped by construction; media are recognised by their bytes."""

import base64

import pytest

from fusion.report.markup import Html, data_uri, element, join


def test_text_is_escaped_and_html_is_kept():
    inner = element("b", {}, "1 < 2 & 'x'")
    assert inner == "<b>1 &lt; 2 &amp; &#x27;x&#x27;</b>"
    assert element("p", {}, inner, "<b>") == f"<p>{inner}&lt;b&gt;</p>"
    assert join("<", Html("<br>")) == "&lt;<br>"


def test_attribute_values_cannot_leave_their_quotes():
    page = element("img", {"alt": '" onerror="steal()', "title": "<>&'"})
    assert page == ('<img alt="&quot; onerror=&quot;steal()" title="&lt;&gt;&amp;&#x27;">')


def test_string_methods_give_plain_text_that_is_escaped_again():
    assert join(Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"


def test_bare_attributes_void_elements_and_empty_alt():
    assert element("audio", {"controls": ""}) == "<audio controls></audio>"
    assert element("img", {"alt": ""}) == '<img alt="">'


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n..", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
        (b"OggS\x00\x02", "audio/ogg"),
        (b"fLaC\x00", "audio/flac"),
        (b"ID3\x04", "audio/mpeg"),
        (b"<svg></svg>", "image/svg+xml"),
    ],
)
def test_data_uri(data, media_type):
    head, body = data_uri(data).split(",")
    assert head == f"data:{media_type};base64"
    assert base64.b64decode(body) == data


@pytest.mark.parametrize("data", [b"", b"<html>", b"RIFF\x00\x00\x00\x00AVI ", b"A frog."])
def test_an_unknown_file_is_refused(data):
    with pytest.raises(ValueError, match=f"got {len(data)} bytes .* convert it first"):
        data_uri(data)
