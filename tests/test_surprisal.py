from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import drawn, tiny_model

from hf_connectome.data import train_bpe
from hf_connectome.errors import ConfigError, DataError, HostMismatchError, UnknownNameError
from hf_connectome.evaluation.surprisal import locate, token_surprisals, word_surprisals

TEXT = "the cat sat on the mat, and the naïve dog saw 漢字 and 😀x there."


def bpe():
    return train_bpe([TEXT, "the cat and the dog " * 4], 280)


def sharp(model, factor=8.0):
    """Make what stands before a token matter: fresh weights give near-uniform outputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return bpe()


@pytest.fixture(scope="module")
def model(tokenizer):
    return sharp(tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=128))


def brute_force(model, ids, index, start=0):
    """Give the surprisal of one token after the tokens from ``start`` on, alone in its batch."""
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([ids[start:index]])).logits[0, -1]
    return -torch.log_softmax(logits.double(), dim=0)[ids[index]].item()


def test_every_token_has_its_brute_force_surprisal_when_the_text_fits(model, tokenizer):
    ids = [0, *tokenizer(TEXT)["input_ids"]]
    (found,) = token_surprisals(model, [ids])
    assert math.isnan(found[0])
    expected = [brute_force(model, ids, i) for i in range(1, len(ids))]
    assert found[1:] == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.5  # the model does tell tokens apart


def test_one_pass_is_exact_when_the_text_just_fits(model, tokenizer):
    ids = [0, *tokenizer(TEXT)["input_ids"]]
    (whole,) = token_surprisals(model, [ids])
    (fits,) = token_surprisals(model, [ids], context=len(ids) - 1, min_context=1)
    np.testing.assert_array_equal(fits, whole)
    (short,) = token_surprisals(model, [ids], context=len(ids) - 2, min_context=1)
    np.testing.assert_array_equal(short[:-1], whole[:-1])
    assert short[-1] == pytest.approx(brute_force(model, ids, len(ids) - 1, 1), abs=1e-4)


@pytest.mark.parametrize(("context", "least"), [(8, 4), (8, 8), (8, 1), (11, 7), (2, 1), (5, None)])
def test_every_token_has_the_least_context_when_the_text_is_long(model, tokenizer, context, least):
    ids = [0, *tokenizer(TEXT)["input_ids"]][:40]
    (found,) = token_surprisals(model, [ids], context=context, min_context=least)
    least = context // 2 if least is None else least
    for index in range(1, len(ids)):
        starts = range(max(0, index - context), max(0, index - least) + 1)
        nearest = min(abs(brute_force(model, ids, index, s) - found[index]) for s in starts)
        assert nearest < 1e-4, (index, list(starts))


def test_sum_over_words_is_that_of_their_tokens_when_tokens_split_characters(model, tokenizer):
    words = TEXT.split()
    pieces = [tokenizer(("" if i == 0 else " ") + w)["input_ids"] for i, w in enumerate(words)]
    ids = [0, *tokenizer(TEXT)["input_ids"]]
    assert [t for piece in pieces for t in piece] == ids[1:]
    assert any(len(p) > len(w) + 1 for p, w in zip(pieces, words, strict=True))
    (tokens,) = token_surprisals(model, [ids])
    expected = np.add.reduceat(tokens[1:], np.cumsum([0, *map(len, pieces[:-1])]))
    (found,) = word_surprisals(model, tokenizer, [words])
    assert found == pytest.approx(expected, abs=1e-9)


def test_space_belongs_to_the_word_after_it(model, tokenizer):
    text = "  cat \n\n the\tdog \n"
    encoded = tokenizer(text, return_offsets_mapping=True)
    (tokens,) = token_surprisals(model, [[0, *encoded["input_ids"]]])
    (found,) = word_surprisals(model, tokenizer, [["cat", "the", "dog"]], [text])
    ends = [text.index("cat") + 3, text.index("the") + 3, text.index("dog") + 3]
    begins = np.array([begin for begin, _ in encoded["offset_mapping"]])
    upto = [float(tokens[1:][begins < end].sum()) for end in ends]
    assert found == pytest.approx(np.diff([0, *upto]), abs=1e-9)
    assert (begins >= ends[2]).any()  # the space at the end counts for no word


def test_batches_change_nothing(model, tokenizer):
    words = [TEXT.split(), ["the", "dog"], ["cat"]]
    alone = word_surprisals(model, tokenizer, words, context=8, batch_size=1)
    together = word_surprisals(model, tokenizer, words, context=8, batch_size=5)
    for left, right in zip(alone, together, strict=True):
        assert left == pytest.approx(right, abs=1e-4)


def test_llama_agrees_with_brute_force_when_padded(tokenizer):
    model = sharp(tiny_model("llama", vocab_size=len(tokenizer)), 4.0)
    sequences = [[0, *tokenizer(t)["input_ids"]] for t in ("the cat", "a", "the dog sat")]
    for ids, found in zip(sequences, token_surprisals(model, sequences), strict=True):
        expected = [brute_force(model, ids, i) for i in range(1, len(ids))]
        assert found[1:] == pytest.approx(expected, abs=1e-4)


def test_connectome_on_the_model_is_read(tokenizer, tmp_path):
    from hf_connectome import ConnectomeModel

    model = sharp(tiny_model("gpt2", vocab_size=len(tokenizer)))
    ids = [0, *tokenizer("the cat sat")["input_ids"]]
    (plain,) = token_surprisals(model, [ids])
    drawn(model, density=0.3).save_pretrained(tmp_path)
    wired = ConnectomeModel.from_pretrained(model, tmp_path)
    (found,) = token_surprisals(wired, [ids])
    assert found[1:] == pytest.approx([brute_force(wired, ids, i) for i in range(1, len(ids))])
    assert np.abs(found[1:] - plain[1:]).max() > 0.1


def test_first_word_is_unknown_when_there_is_no_token_for_the_beginning(model):
    tokenizer = bpe()
    tokenizer.bos_token = None
    (found,) = word_surprisals(model, tokenizer, [["the", "cat"]])
    assert np.isnan(found).tolist() == [True, False]
    ids = tokenizer("the cat")["input_ids"]
    assert found[1] == pytest.approx(sum(brute_force(model, ids, i) for i in range(1, len(ids))))


def test_bits_are_nats_over_log_two(model, tokenizer):
    (nats,) = word_surprisals(model, tokenizer, [["the", "cat"]])
    (bits,) = word_surprisals(model, tokenizer, [["the", "cat"]], unit="bits")
    assert bits == pytest.approx(nats / math.log(2))


def test_model_is_left_in_its_mode(tokenizer):
    model = tiny_model("gpt2", vocab_size=len(tokenizer)).train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    first = word_surprisals(model, tokenizer, [["the"]])
    assert [m.training for m in model.modules()] == modes
    assert first == word_surprisals(model, tokenizer, [["the"]])  # no dropout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 129}, "context is 129 tokens, the model has 128 positions"),
        ({"context": 1}, "context is 1 tokens"),
        ({"context": 8, "min_context": 9}, "min_context is 9 tokens with a context of 8"),
        ({"min_context": 0}, "min_context is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_error_when_a_setting_is_outside_its_range(model, tokenizer, settings, message):
    with pytest.raises(ConfigError, match=message):
        word_surprisals(model, tokenizer, [["the"]], **settings)


def test_error_when_the_unit_is_unknown(model, tokenizer):
    with pytest.raises(UnknownNameError, match="Did you mean 'bits'"):
        word_surprisals(model, tokenizer, [["the"]], unit="bit")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bert", "not causal: another last token moves"), ("t5", "is an encoder-decoder")],
)
def test_error_when_the_model_is_not_causal(kind, message):
    with pytest.raises(ConfigError, match=message):
        token_surprisals(tiny_model(kind), [[1, 2, 3]])


def test_error_when_the_tokenizer_has_more_tokens_than_the_model(tokenizer):
    with pytest.raises(HostMismatchError, match="the model has 97 embeddings"):
        word_surprisals(tiny_model("gpt2"), tokenizer, [["the", "cat"]])


def test_error_when_weights_are_not_finite(tokenizer):
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    with torch.no_grad():
        model.transformer.wte.weight[0] = math.nan
    with pytest.raises(DataError, match="gives token 1 of text 0 a surprisal of nan"):
        word_surprisals(model, tokenizer, [["the"]])


def test_error_when_no_token_begins_in_a_word(model):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"?": 0, "of course": 1}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="?")
    with pytest.raises(DataError, match="no token begins in word 2, 'course'"):
        word_surprisals(model, tokenizer, [["of", "course"]])


def test_error_when_a_tokenizer_does_not_know_its_characters(model):
    class Slow:
        bos_token_id = 0

    with pytest.raises(DataError, match="Slow is not made by the tokenizers library"):
        word_surprisals(model, Slow(), [["the"]])


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["To", "be"], "To bee or", "goes on with 'e or' after its last word, number 2"),
        (["To", "bee"], "To be or", "word 2 is 'bee', but the text goes on with ' be or'"),
        (["To", "be"], "To", "word 2 is 'be', but the text goes on with ''"),
        (["To", ""], "To", "word 2 is ''"),
    ],
)
def test_error_when_words_do_not_join_with_the_text(words, text, message):
    with pytest.raises(DataError, match=message):
        locate(words, text)


def test_words_are_located_where_no_space_is_between():
    assert locate(["漢", "字", "x"], "漢字 x\n") == [(0, 1), (1, 2), (3, 4)]


def test_error_when_texts_and_words_differ_in_number(model, tokenizer):
    with pytest.raises(DataError, match="1 lists of words come with 2 texts"):
        word_surprisals(model, tokenizer, [["a"]], ["a", "b"])
    with pytest.raises(DataError, match="there is no text"):
        word_surprisals(model, tokenizer, [])
