"""What people ask each other to say, and how it is said in English and in Indonesian: the tables of `general`."""

from collections.abc import Mapping
from typing import NamedTuple

from nalar.tasks.language import Language
from nalar.tasks.phrases import pairs

NAMES = (
    "Adi",
    "Ana",
    "Ben",
    "Budi",
    "Dewi",
    "Eka",
    "Joko",
    "Kim",
    "Leo",
    "Mia",
    "Omar",
    "Rina",
    "Sam",
    "Sari",
    "Tom",
    "Yudi",
)
_GOODS = (
    "cake/kue tea/teh book/buku map/peta pen/pena soup/sup rice/nasi milk/susu lamp/lampu bag/tas"
)
_EVENTS = (
    "party/pesta dinner/makan_malam picnic/piknik class/kelas lunch/makan_siang meeting/rapat show/pameran "
    "play/drama"
)
_TRIALS = "exam/ujian race/lomba test/tes match/laga trip/perjalanan job/pekerjaan show/pameran play/drama"
_FAULTS = "noise/keributan mistake/kesalahan delay/kelambatan mess/kekacauan joke/lelucon fight/pertengkaran"
_TIMES = "morning/pagi afternoon/siang evening/malam"
_THINGS = (
    "cat/kucing dog/anjing car/mobil hat/topi bike/sepeda house/rumah goat/kambing boat/perahu"
)
_SIZES = "big/besar small/kecil long/panjang new/baru"
_COLOURS = "red/merah black/hitam white/putih green/hijau blue/biru"


class Act(NamedTuple):
    """What somebody is asked to say, in one language."""

    prompt: str
    cores: tuple[str, ...]
    """Patterns of what may be said, without a mark at a question's end only. Where no name stands in one, whoever is
    meant is named before it or behind."""
    polite: tuple[str, ...]
    """One of these is in every core; none where the request needs none."""
    rude: str


ACTS: Mapping[str, Mapping[Language, Act]] = {
    "greet": {
        "en": Act(
            "Greet {name} in the {thing}.",
            ("good {thing}.", "a [very |]good {thing} to you.", "good {thing}, how are you?"),
            ("good",),
            "You again, {name}, this {thing}.",
        ),
        "id": Act(
            "Sapa {name} di {thing} hari.",
            ("selamat {thing}.", "selamat {thing}, apa kabar?"),
            ("selamat",),
            "Kamu lagi, {name}, {thing} begini.",
        ),
    },
    "thank": {
        "en": Act(
            "Thank {name} for the {thing}.",
            ("thank you[| so much| very much] for the {thing}.", "[many |]thanks for the {thing}."),
            ("thank you", "thanks"),
            "I took the {thing}, {name}.",
        ),
        "id": Act(
            "Bilang terima kasih ke {name} untuk {thing}.",
            ("terima kasih[| banyak] untuk {thing}[nya|].", "terima kasih atas {thing}[nya|]."),
            ("terima kasih",),
            "Aku ambil {thing}, {name}.",
        ),
    },
    "ask": {
        "en": Act(
            "Ask {name} for the {thing}.",
            (
                "may I have the {thing}[, please|]?",
                "could you[ please|] [give|pass] me the {thing}?",
                "please [give|pass] me the {thing}.",
            ),
            ("may i", "could you", "please"),
            "Give me the {thing}, {name}.",
        ),
        "id": Act(
            "Minta {thing} ke {name}.",
            (
                "boleh[kah|] saya minta {thing}[nya|]?",
                "tolong [beri|ambilkan] saya {thing}[nya|].",
                "bisa[kah|] tolong [beri|ambilkan] saya {thing}?",
            ),
            ("boleh", "bolehkah", "tolong"),
            "Beri aku {thing}, {name}.",
        ),
    },
    "invite": {
        "en": Act(
            "Invite {name} to the {thing}.",
            (
                "please come to [the|our] {thing}.",
                "would you like to come to [the|our] {thing}?",
                "you are [most |]welcome at [the|our] {thing}.",
            ),
            ("please", "would you like", "welcome"),
            "Be at the {thing}, {name}.",
        ),
        "id": Act(
            "Undang {name} ke {thing}.",
            (
                "silakan datang ke {thing}[| kami].",
                "mari datang ke {thing}[| kami].",
                "maukah kamu datang ke {thing}[| kami]?",
            ),
            ("silakan", "mari", "maukah"),
            "Kamu harus ke {thing}, {name}.",
        ),
    },
    "wish": {
        "en": Act(
            "Wish {name} luck with the {thing}.",
            (
                "good luck with [the|your] {thing}.",
                "best of luck with [the|your] {thing}.",
                "I wish you luck with [the|your] {thing}.",
            ),
            ("good luck", "best of luck", "wish you luck"),
            "You will fail the {thing}, {name}.",
        ),
        "id": Act(
            "Doakan {name} untuk {thing}.",
            (
                "semoga berhasil dengan {thing}[nya|].",
                "semoga sukses dengan {thing}[nya|].",
                "semoga {thing}[nya|] lancar.",
            ),
            ("semoga",),
            "Kamu gagal di {thing}, {name}.",
        ),
    },
    "apologise": {
        "en": Act(
            "Say sorry to {name} for the {thing}.",
            (
                "I am[| so| very] sorry for the {thing}.",
                "[please forgive|do forgive] me the {thing}.",
            ),
            ("sorry", "forgive"),
            "Forget the {thing}, {name}.",
        ),
        "id": Act(
            "Minta maaf ke {name} soal {thing}.",
            (
                "[saya minta|mohon|minta] maaf soal {thing}[nya|].",
                "maafkan saya soal {thing}[nya|].",
            ),
            ("maaf", "maafkan"),
            "Lupakan {thing}, {name}.",
        ),
    },
    "describe": {
        "en": Act(
            "Describe {name}'s {thing}: {size}, {colour}.",
            (
                "{name}'s {thing} is {size} and {colour}.",
                "{name} has a {size}[,| and] {colour} {thing}.",
                "{name}'s {thing} is {colour} and {size}.",
            ),
            (),
            "Who cares about {name}'s {thing}?",
        ),
        "id": Act(
            "Gambarkan {thing} {name}: {size}, {colour}.",
            (
                "{thing} {name} {size} dan {colour}.",
                "{name} punya {thing} {size}[,| dan] {colour}.",
                "{thing} {name} {colour} dan {size}.",
            ),
            (),
            "Siapa peduli {thing} {name}?",
        ),
    },
}
"""By the names that the setting `acts` knows."""
CALLS: Mapping[Language, tuple[str, ...]] = {
    "en": ("", "Dear ", "Hi "),
    "id": ("", "Halo ", "Hai "),
}
"""Before a name that comes first."""
FILLERS: Mapping[Language, tuple[str, ...]] = {
    "en": ("It is a very fine day.", "That is all for now.", "I like to say that."),
    "id": ("Hari ini sangat cerah.", "Itu saja untuk saat ini.", "Senang bisa bilang itu."),
}

THINGS: Mapping[str, Mapping[str, Mapping[Language, str]]] = {
    "greet": pairs(_TIMES),
    "thank": pairs(_GOODS),
    "ask": pairs(_GOODS),
    "invite": pairs(_EVENTS),
    "wish": pairs(_TRIALS),
    "apologise": pairs(_FAULTS),
    "describe": pairs(_THINGS),
}
"""What an act may be about."""
SIZES, COLOURS = pairs(_SIZES), pairs(_COLOURS)
WORDS = {en: pair for table in (SIZES, COLOURS, *THINGS.values()) for en, pair in table.items()}
