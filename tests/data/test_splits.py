"""Which rule divides a collection: artists, else albums, else tracks; and what is said of it."""

from collections.abc import Mapping

import pytest

from stages.data.splits import Division, divide_tracks
from stages.params import Manifest

WANTED = {"valid_share": 0.1, "test_share": 0.2}


def tracks(*rows: tuple[str, str, str]) -> dict[str, dict[str, str]]:
    return {path: {"artist": artist, "album": album} for path, artist, album in rows}


def numbered(count: int, artist: str = "", album: str = "", folder: str = "") -> Mapping[str, Mapping[str, str]]:
    return tracks(*((f"{folder}{number:02}.wav", artist, album) for number in range(count)))


def divided(texts: Mapping[str, Mapping[str, str]], copies: tuple[tuple[str, str], ...] = (), **options) -> Division:
    return divide_tracks(texts, copies, Manifest(**{**WANTED, **options}))


def sizes(division: Division) -> dict[str, int]:
    splits = list(division.split_of.values())
    return {name: splits.count(name) for name in ("train", "valid", "test")}


def test_artists_where_they_fill_every_split():
    many = tracks(*((f"{n}.wav", f"artist {n % 5}", "one album") for n in range(20)))
    found = divided(many)
    assert found.by == "artist"
    assert found.notes == ["Split by artist: 5 artists."]
    for artist in range(5):
        assert len({found.split_of[f"{n}.wav"] for n in range(20) if n % 5 == artist}) == 1


def test_one_artist_falls_back_to_albums():
    albums = tracks(*((f"{n}.wav", "Me", f"album {n % 4}") for n in range(20)))
    found = divided(albums)
    assert found.by == "album"
    assert sizes(found) == {"train": 10, "valid": 5, "test": 5}
    assert found.notes == [
        "Split by album: 4 albums, since 1 artist cannot fill every split. "
        "To keep such groups whole: -S manifest.split_by=artist"
    ]
    for album in range(4):
        assert len({found.split_of[f"{n}.wav"] for n in range(20) if n % 4 == album}) == 1


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (numbered(10, "Me"), "1 artist"),
        (numbered(10, "Me", "The album"), "1 artist"),
        (numbered(10, folder="audio/"), "1 folder"),
        (numbered(10, album="The album"), "1 album"),
        (tracks(*((f"{n}.wav", f"artist {n % 2}", "") for n in range(10))), "2 artists"),
    ],
)
def test_too_few_groups_fall_back_to_tracks(texts, whole):
    found = divided(texts)
    assert found.by == "track"
    assert sizes(found) == {"train": 7, "valid": 1, "test": 2}
    assert found.notes == [
        f"Split by track: 10 tracks, since {whole} cannot fill every split. "
        "To keep such groups whole: -S manifest.split_by=artist"
    ]


def test_a_flat_folder_without_tags_is_split_by_track_and_folders_are_kept_where_there_are_several():
    flat = divided(numbered(10))
    assert (flat.by, flat.notes) == ("track", ["Split by track: 10 tracks; none names its artist or album."])
    folders = divided({**numbered(8, folder="a/"), **numbered(2, folder="b/"), **numbered(2, folder="c/")})
    assert (folders.by, folders.notes) == ("artist", ["Split by artist: 3 folders."])
    assert len({folders.split_of[f"b/{n:02}.wav"] for n in range(2)}) == 1


def test_copies_share_a_split_by_every_rule():
    texts = numbered(10, "Me")
    copies = (("03.wav", "00.wav"), ("07.wav", "03.wav"))
    for seed in range(20):
        split_of = divided(texts, copies, seed=seed).split_of
        assert split_of["00.wav"] == split_of["03.wav"] == split_of["07.wav"]


def test_a_forced_rule_is_kept_and_what_is_empty_is_said():
    found = divided(numbered(5, "Me"), split_by="artist")
    assert sizes(found) == {"train": 5, "valid": 0, "test": 0}
    assert found.notes == [
        "Split by artist: 1 artist.",
        "valid and test are empty, as 1 artist cannot fill every split: trainings are not validated "
        "and `generate` and `eval` have no test music. To divide finer: -S manifest.split_by=auto.",
    ]
    many = tracks(*((f"{n}.wav", f"artist {n}", "") for n in range(9)))
    assert divided(many, split_by="track").notes == ["Split by track: 9 tracks."]
    album = divided(tracks(*((f"{n}.wav", f"artist {n}", f"album {n % 3}") for n in range(9))), split_by="album")
    assert album.notes == ["Split by album: 3 albums."]


def test_one_track_or_two_say_what_is_missing():
    one = divided(numbered(1, "Me"))
    assert sizes(one) == {"train": 1, "valid": 0, "test": 0}
    assert one.notes[1].startswith("valid and test are empty, as 1 track cannot fill every split")
    assert one.notes[1].endswith("Add music.")
    two = divided(numbered(2, "Me"))
    assert sizes(two) == {"train": 1, "valid": 0, "test": 1}
    assert two.notes[1].startswith("valid is empty, as 2 tracks cannot")
    assert len(divided(numbered(2, "Me"), valid_share=0).notes) == 1, "valid is empty by wish"


def test_two_tracks_are_for_tests_where_there_are_five_as_a_distance_between_sets_needs_two():
    for count in range(5, 20):
        assert sizes(divided(numbered(count, "Me"), test_share=0.1))["test"] == 2
    assert sizes(divided(numbered(4, "Me"), test_share=0.1)) == {"train": 2, "valid": 1, "test": 1}
    assert sizes(divided(numbered(9, "Me"), test_share=0))["test"] == 0
