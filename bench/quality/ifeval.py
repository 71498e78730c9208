"""IFEval's instructions: whether an answer follows one, by its id and arguments."""
import json
import re
import unicodedata

CHECKS = {}
RELATIONS = {"at least": lambda n, bound: n >= bound, "less than": lambda n, bound: n < bound}
SCRIPTS = {"ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "bn": "BENGALI", "bg": "CYRILLIC",
           "ru": "CYRILLIC", "gu": "GUJARATI", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI",
           "kn": "KANNADA", "ko": "HANGUL", "pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU", "th": "THAI",
           "ja": "HIRAGANA", "zh": "CJK"}


def check(name):
    def keep(function):
        CHECKS[name] = function
        return function
    return keep


def follows(answer, name, arguments):
    """An empty answer follows nothing. ValueError: no such instruction."""
    if name not in CHECKS:
        raise ValueError(f"unknown instruction {name}")
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    return bool(answer.strip()) and bool(CHECKS[name](answer, **given))


def compare(n, bound, relation="at least"):
    return RELATIONS[relation](n, bound)


def words(text):
    return re.findall(r"\w+(?:['-]\w+)*", text)


def sentences(text):
    ends = re.findall(r"[^.!?]+(?:[.!?]+|$)", re.sub(r"\b(Mr|Mrs|Ms|Dr|St|e\.g|i\.e)\.", r"\1", text))
    return [one for one in ends if one.strip()]


@check("keywords:existence")
def has_keywords(text, keywords):
    return all(re.search(re.escape(word), text, re.I) for word in keywords)


@check("keywords:frequency")
def keyword_frequency(text, keyword, frequency, relation):
    return compare(len(re.findall(re.escape(keyword), text, re.I)), frequency, relation)


@check("keywords:forbidden_words")
def forbidden_words(text, forbidden_words):
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.I) for word in forbidden_words)


@check("keywords:letter_frequency")
def letter_frequency(text, letter, let_frequency, let_relation):
    return compare(text.lower().count(letter.lower()), let_frequency, let_relation)


@check("language:response_language")
def language(text, language):
    letters = [unicodedata.name(c, "") for c in text if c.isalpha()]
    script = SCRIPTS.get(language, "LATIN")
    mine = sum(script in name for name in letters)
    return mine * 2 > len(letters) or (language == "ja" and mine > 0)


@check("length_constraints:number_sentences")
def number_sentences(text, num_sentences, relation):
    return compare(len(sentences(text)), num_sentences, relation)


@check("length_constraints:number_words")
def number_words(text, num_words, relation):
    return compare(len(words(text)), num_words, relation)


@check("length_constraints:number_paragraphs")
def number_paragraphs(text, num_paragraphs):
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == num_paragraphs


@check("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(text, num_paragraphs, nth_paragraph, first_word):
    parts = [part for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    first = parts[nth_paragraph - 1].strip().split()[0].lstrip("'\"").lower()
    return re.split(r"[.,?!'\"]", first)[0] == first_word.lower()


@check("detectable_content:number_placeholders")
def number_placeholders(text, num_placeholders):
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@check("detectable_content:postscript")
def postscript(text, postscript_marker):
    marks = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = marks.get(postscript_marker, r"\s*" + re.escape(postscript_marker.lower()) + r".*$")
    return re.search(pattern, text.lower(), re.M)


@check("detectable_format:number_bullet_lists")
def number_bullet_lists(text, num_bullets):
    return len(re.findall(r"^\s*\*[^\*].*$", text, re.M)) + len(re.findall(r"^\s*-.*$", text, re.M)) == num_bullets


@check("detectable_format:constrained_response")
def constrained_response(text):
    return any(one in text for one in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


@check("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text, num_highlights):
    single = [one for one in re.findall(r"\*[^\n\*]*\*", text) if one.strip("*").strip()]
    double = [one for one in re.findall(r"\*\*[^\n\*]*\*\*", text) if one.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


@check("detectable_format:multiple_sections")
def multiple_sections(text, section_spliter, num_sections):
    return len(re.split(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) - 1 >= num_sections


@check("detectable_format:json_format")
def json_format(text):
    text = re.sub(r"^```(?:json|JSON|Json)?|```$", "", text.strip()).strip()
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@check("detectable_format:title")
def title(text):
    return any(one.strip("<>").strip() for one in re.findall(r"<<[^\n]+>>", text))


@check("combination:two_responses")
def two_responses(text):
    parts = text.split("******")
    valid = [part.strip() for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
    return len(valid) == 2 and all(valid) and valid[0] != valid[1]


@check("combination:repeat_prompt")
def repeat_prompt(text, prompt_to_repeat):
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@check("startend:end_checker")
def end_checker(text, end_phrase):
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def quotation(text):
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def in_case(text, which):
    return getattr(text, which)() and any(c.isalpha() for c in text)


@check("change_case:capital_word_frequency")
def capital_word_frequency(text, capital_frequency, capital_relation):
    return compare(sum(word.isupper() for word in words(text)), capital_frequency, capital_relation)


@check("change_case:english_capital")
def english_capital(text):
    return in_case(text, "isupper")


@check("change_case:english_lowercase")
def english_lowercase(text):
    return in_case(text, "islower")


@check("punctuation:no_comma")
def no_comma(text):
    return "," not in text
