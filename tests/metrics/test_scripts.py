"""Error rates in scripts whose vowels, tones or sounds are marks: different words differ, and each word stays one word."""

import unicodedata

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from peft_listen.metrics import get_metric
from peft_listen.metrics.text_normalization import get_normalizer


# Two different words that are equal without their marks (or, for the last ones, without their joiners).
DIFFERENT_WORDS = {
    "Hindi": ("दाल", "दिल"),
    "Hindi nasal": ("हंस", "हँस"),
    "Hindi nukta": ("राज", "राज़"),
    "Hindi conjunct": ("पका", "पक्का"),
    "Marathi": ("पाणी", "पाणि"),
    "Nepali": ("फूल", "फुल"),
    "Bengali": ("কাল", "কুল"),
    "Bengali conjunct": ("বল", "ব্ল"),
    "Assamese": ("মন", "মান"),
    "Punjabi": ("ਦਿਨ", "ਦੀਨ"),
    "Gujarati": ("કામ", "કીમ"),
    "Odia": ("ଦିନ", "ଦାନ"),
    "Tamil": ("கல்", "கால்"),
    "Tamil vowels": ("மலை", "மாலை"),
    "Telugu": ("పాలు", "పిలు"),
    "Kannada": ("ಹಾಲು", "ಹೂಲು"),
    "Malayalam": ("മല", "മാല"),
    "Sinhala": ("මල", "මාල"),
    "Thai vowels": ("ปี", "ปู"),
    "Thai tones": ("ใกล้", "ใกล"),
    "Thai tone and vowel": ("มี", "มี่"),
    "Lao": ("ປີ", "ປູ"),
    "Khmer": ("តា", "តី"),
    "Burmese": ("မာ", "မီ"),
    "Tibetan": ("མི", "མེ"),
    "Javanese": ("ꦱꦶ", "ꦱꦸ"),
    "Dhivehi": ("މަސް", "މިސް"),
    "Arabic": ("كَتَبَ", "كُتِبَ"),
    "Arabic doubling": ("درس", "درّس"),
    "Urdu": ("اِس", "اُس"),
    "Hebrew": ("סֵפֶר", "סַפָּר"),
    "Yiddish": ("האַט", "האָט"),
    "Syriac": ("ܡܰܠܟܳܐ", "ܡܶܠܟܳܐ"),
    "Yoruba": ("ọ̀rọ̀", "ọ́rọ́"),
    "Ewe": ("kɔ̃", "kɔ"),
    "phonetic": ("bɔ̃", "bɔ"),
    "Lithuanian stress": ("gẽ̇ras", "gẽras"),
    "Vietnamese": ("mà", "má"),
    "Japanese": ("か\u309b", "か"),
    "Japanese half width": ("\uff76\uff9e", "\uff76"),
    "Korean": ("달", "돌"),
    "Korean in parts": (unicodedata.normalize("NFD", "달"), unicodedata.normalize("NFD", "다")),
    "Malayalam chillu": ("അവന\u0d4d\u200d", "അവന\u0d4d"),
    "Persian joiner": ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "میخواهم"),
}


@pytest.mark.parametrize("case", DIFFERENT_WORDS)
def test_words_that_differ_in_their_marks_are_different(case) -> None:
    reference, prediction = DIFFERENT_WORDS[case]
    for first, second in ((reference, prediction), (prediction, reference)):
        words = get_metric("wer").compute(predictions=[first], references=[second])
        assert words == {"wer": 1.0, "substitutions": 1, "deletions": 0, "insertions": 0, "hits": 0}
        assert get_metric("cer").compute(predictions=[first], references=[second])["cer"] > 0


@pytest.mark.parametrize("case", DIFFERENT_WORDS)
def test_a_word_is_one_word_in_every_form_of_unicode(case) -> None:
    normalize = get_normalizer("basic")
    for word in DIFFERENT_WORDS[case]:
        assert " " not in normalize(word)
        sentence = f"{word}, ({word}) «{word}»!"
        forms = {normalize(unicodedata.normalize(form, sentence)) for form in ("NFC", "NFD", "NFKC")}
        assert forms == {f"{normalize(word)} {normalize(word)}"}


def test_rates_of_sentences_count_words_and_code_points() -> None:
    # One of four words is wrong; it differs in one of 14 code points (spaces included).
    inputs = {"predictions": ["मैं दिल खाता हूँ।"], "references": ["मैं दाल खाता हूँ"]}
    assert get_metric("wer").compute(**inputs)["wer"] == 1 / 4
    assert get_metric("cer").compute(**inputs)["cer"] == pytest.approx(1 / len("मैं दाल खाता हूँ"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ক\u09cbন", "ক\u09c7\u09beন"),  # the Bengali vowel o as one or two characters
        ("க\u0bca", "க\u0bc6\u0bbe"),  # the Tamil vowel o
        ("\u0958लम", "क\u093cलम"),  # ka with nukta
        ("น้ำ", "น้\u0e4dา"),  # Thai sara am
        ("سـلام", "سلام"),  # a stretched word
        ("\u200f\u05e9\u05dc\u05d5\u05dd\u200e", "שלום"),  # marks of direction
        ("\ufeffword", "word"),  # a byte order mark
        ("İstanbul", "istanbul"),  # a Turkish capital
        ("葛\U000e0100城", "葛城"),  # a variant of a glyph
        ("か\u309b", "が"),
        ("हाँ। ❤️", "हाँ"),
        ("👩‍👧 दाल 👍🏽", "दाल"),
        ("1️⃣ 2️⃣", "1 2"),
    ],
)
def test_spellings_of_the_same_text_are_equal(first, second) -> None:
    assert get_metric("wer").compute(predictions=[first], references=[second])["wer"] == 0.0
    assert get_metric("cer").compute(predictions=[first], references=[second])["cer"] == 0.0


@pytest.mark.parametrize(
    ("pointed", "plain"),
    [("كَتَبَ الدَّرْسَ", "كتب الدرس"), ("הַסֵּפֶר שֶׁלִּי", "הספר שלי"), ("בְּרֵאשִׁ֖ית", "בראשית"), ("ٱلرَّحْمَٰنِ", "ٱلرحمن")],
)
def test_points_of_arabic_and_hebrew_count_unless_they_are_removed(pointed, plain) -> None:
    inputs = {"predictions": [plain], "references": [pointed]}
    assert get_metric("wer").compute(**inputs)["wer"] == 1.0
    assert get_metric("wer", normalizer="unpointed").compute(**inputs)["wer"] == 0.0
    assert get_metric("cer", normalizer="unpointed").compute(**inputs)["cer"] == 0.0


@pytest.mark.parametrize(
    ("first", "second"), [("سأل", "سال"), ("آمن", "امن"), ("दाल", "दिल"), ("ใกล้", "ใกล"), ("סֵפֶר", "ספור")]
)
def test_without_points_other_marks_and_letters_still_count(first, second) -> None:
    result = get_metric("wer", normalizer="unpointed").compute(predictions=[first], references=[second])
    assert result["wer"] == 1.0


ENGLISH = [
    "Hello — DON'T panic! [laughs] \uff11\uff12",
    "It costs $5.20 (about £4) & 50% more; see e.g. <i>page</i> #3.",
    "The naïve café owner\u2019s “résumé” — re\u0301sume\u0301 — was read by Zoë & Dvořák.",
    "At 7:30 p.m., 21st-century trains… ran @ 100 km/h ½ full 👍🏽 ❤️!",
    "a\tb\r\nc\u00a0d\u2003e",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_normalized_as_by_whisper(text) -> None:
    assert get_normalizer("basic")(text) == BasicTextNormalizer()(text).strip()


def test_error_rates_of_english_equal_jiwer_with_whispers_normalizer() -> None:
    references = ENGLISH
    predictions = [*ENGLISH[1:], "nothing like it"]
    whisper = BasicTextNormalizer()
    expected = [[whisper(text).strip() for text in texts] for texts in (references, predictions)]
    inputs = {"predictions": predictions, "references": references}
    assert get_metric("wer").compute(**inputs)["wer"] == jiwer.wer(*expected)
    assert get_metric("cer").compute(**inputs)["cer"] == jiwer.cer(*expected)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cc", "Cf"]), max_size=40))
def test_latin_text_is_normalized_as_by_whisper(text) -> None:
    if "İ" not in text:
        assert get_normalizer("basic")(text) == BasicTextNormalizer()(text).strip()


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_normalization_is_stable_and_keeps_every_letter(text) -> None:
    for name in ("basic", "unpointed"):
        normalize = get_normalizer(name)
        once = normalize(text)
        assert once == " ".join(once.split())
    letters = [
        c for c in unicodedata.normalize("NFKC", text.lower()).lower() if unicodedata.category(c) in ("Ll", "Lo")
    ]
    if not set("<[(") & set(text):
        assert [c for c in get_normalizer("basic")(text) if unicodedata.category(c) in ("Ll", "Lo")] == letters


@pytest.mark.parametrize("reference", ["5 दाल", "सा re ga मापा", "มี 2 ตัว", "3 собаки", "12 kg 가나다", "你好 ok吗"])
def test_rouge_l_does_not_ignore_most_of_a_reference(reference) -> None:
    with pytest.raises(ValueError, match=r"Most letters of `references\[0\]` are not among a to z.*`chrf`"):
        get_metric("rouge_l").compute(predictions=["5 दिल re ga"], references=[reference])


@pytest.mark.parametrize("reference", ["a café", "10 μm of dust", "naïve", "Dvořák plays", "the sound 啊 in Chinese"])
def test_rouge_l_accepts_english_with_other_letters(reference) -> None:
    assert get_metric("rouge_l").compute(predictions=[reference], references=[reference])["rouge_l"] == 1.0


@pytest.mark.parametrize(
    "name", ["wer", "cer", "bleu", "chrf", "cider", "rouge_l", "exact_match", "squad_f1", "accuracy"]
)
@pytest.mark.parametrize("text", ["a \ud83d", "\udc00 b", "c\udfff"])
def test_half_a_surrogate_pair_is_named(name, text) -> None:
    metric = get_metric(name)
    with pytest.raises(ValueError, match=r"`predictions\[1\]` contains half a surrogate pair"):
        metric.compute(predictions=["a", text], references=["a", "b"])
    with pytest.raises(ValueError, match=r"`references\[1\]` contains half a surrogate pair"):
        metric.compute(predictions=["a", "b"], references=["a", text])


@pytest.mark.parametrize("name", [None, 3, ["wer"], {"wer": 1}])
def test_a_name_that_is_not_a_string_is_refused(name) -> None:
    with pytest.raises(ValueError, match="There is no metric"):
        get_metric(name)
