from __future__ import annotations

import bz2
import errno
import gzip
import itertools
import lzma
import pickle
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, HfArgumentParser

from hf_connectome.data import (
    DataArguments,
    collate,
    count_bytes,
    document_key,
    load_corpus,
    pack,
    parse_part,
    tokenizer_digest,
    train_bpe,
)
from hf_connectome.errors import ConfigError, DataError, StorageError

WORDS = [
    "the ",
    "mask ",
    "keeps ",
    "a ",
    "sign",
    "survivor",
    "é",
    "脳 ",
    "🧠",
    "\n",
    "   ",
    "fifth.",
]
OPENSTAX = Path(__file__).parents[2] / "shared/data/text/openstax_valid.txt.xz"


def documents(num, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(WORDS, size=rng.integers(3, 60))) for _ in range(num)]
    return [f"{n} {text}." for n, text in enumerate(texts)]


def write_text(path, texts):
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return str(path)


def write_shard(path, tokens, magic=20240520, version=1, count=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return str(path)


def rows(dataset):
    return [tuple(row["input_ids"]) for row in dataset]


def stream_of(texts, tokenizer):
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [token for document in ids for token in (*document, tokenizer.eos_token_id)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(documents(50), 300)


@pytest.fixture
def arguments(tmp_path):
    """Arguments for a small text corpus, cached where nobody else looks."""
    corpus = write_text(tmp_path / "corpus.txt", documents(80))
    return DataArguments(
        dataset=corpus,
        tokenizer="bpe:300",
        block_size=16,
        eval_fraction=0.2,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


# Packing.


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    block_size=st.integers(2, 24),
    batch=st.integers(1, 60),
)
def test_pack_drops_only_the_last_tail(tokenizer, lengths, block_size, batch):
    texts = ["a " * length for length in lengths]
    expected = stream_of(texts, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[pack.__module__], "_BATCH_CHARACTERS", batch)
        if len(expected) < block_size:
            with pytest.raises(DataError, match=f"has {len(expected)} tokens, less than one"):
                list(pack(texts, tokenizer, block_size))
            return
        blocks = np.concatenate(list(pack(texts, tokenizer, block_size)))
    assert blocks.shape == (len(expected) // block_size, block_size)
    assert blocks.dtype == np.uint16
    assert blocks.ravel().tolist() == expected[: blocks.size]


@settings(deadline=None)
@given(bound=st.integers(8, 400))
def test_max_tokens_takes_a_prefix_when_bounded(tokenizer, bound):
    texts = documents(12)
    every = np.concatenate(list(pack(texts, tokenizer, 8)))
    some = np.concatenate(list(pack(texts, tokenizer, 8, max_tokens=bound)))
    assert len(some) == min(len(every), bound // 8)
    np.testing.assert_array_equal(some, every[: len(some)])


def test_pack_reads_no_further_than_max_tokens(tokenizer, monkeypatch):
    monkeypatch.setattr(sys.modules[pack.__module__], "_BATCH_CHARACTERS", 200)
    texts = iter(["the mask " * 40] * 3)
    assert sum(len(blocks) for blocks in pack(texts, tokenizer, 8, max_tokens=80)) == 10
    assert len(list(texts)) == 2


def test_pack_is_not_truncated_when_the_tokenizer_was_used_to_truncate(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 (our own bytes)
    other.pad_token = other.eos_token
    other(documents(2), truncation=True, max_length=2, padding="max_length")
    assert other.backend_tokenizer.truncation is not None
    expected = np.concatenate(list(pack(documents(4), tokenizer, 8)))
    np.testing.assert_array_equal(np.concatenate(list(pack(documents(4), other, 8))), expected)


def test_pack_refuses_a_tokenizer_without_end_of_text(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 (our own bytes)
    other.eos_token = None
    with pytest.raises(DataError, match="no eos_token, which separates documents"):
        list(pack(["a"], other, 2))


# Tokenizers.


def test_train_bpe_has_the_size_asked_for_and_writes_any_bytes():
    tokenizer = train_bpe(documents(50), 300)
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.unk_token == "<|endoftext|>"
    text = "".join(map(chr, range(1, 0x250))) + "\r\n\t 脳🧠  x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_train_bpe_is_the_same_twice_and_in_any_order():
    texts = documents(50)
    digest = tokenizer_digest(train_bpe(texts, 320))
    assert digest == tokenizer_digest(train_bpe(iter(texts[::-1]), 320))
    assert digest != tokenizer_digest(train_bpe(texts, 319))


def test_train_bpe_is_smaller_when_the_corpus_has_too_few_pairs():
    assert len(train_bpe(["abab"], 5000)) == 259  # ab, abab


@pytest.mark.parametrize("size", [256, 0])
def test_train_bpe_refuses_a_size_below_the_bytes(size):
    with pytest.raises(ConfigError, match=rf"vocab_size is {size}; expected at least 257"):
        train_bpe(["a"], size)
    with pytest.raises(ConfigError, match=rf"'bpe:{size}'; expected 'bpe:SIZE'.*'bpe:2048'"):
        DataArguments(tokenizer=f"bpe:{size}")


def test_tokenizer_digest_survives_save_and_load(tokenizer, tmp_path):
    digest = tokenizer_digest(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(loaded) == digest
    loaded.backend_tokenizer.enable_truncation(1)
    loaded.backend_tokenizer.enable_padding()
    assert tokenizer_digest(loaded) == digest
    loaded.add_tokens(["脳"])
    assert tokenizer_digest(loaded) != digest


def test_tokenizer_digest_is_the_one_that_connectomes_carry():
    expected = "c9226209fb4d9a9519c01c8c86b908e724bbe8b07e914372c01365c6a3a07fee"
    assert tokenizer_digest(train_bpe(["abab"], 259)) == expected


def test_tokenizer_digest_refuses_a_tokenizer_without_backend():
    with pytest.raises(DataError, match=r"object is not made by the tokenizers library.*fast"):
        tokenizer_digest(object())


def test_load_corpus_uses_the_tokenizer_that_is_given(arguments, tokenizer):
    assert load_corpus(arguments, tokenizer).tokenizer is tokenizer


def test_load_corpus_loads_a_tokenizer_by_path(arguments, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tok")
    corpus = load_corpus(replace(arguments, tokenizer=str(tmp_path / "tok")))
    assert tokenizer_digest(corpus.tokenizer) == tokenizer_digest(tokenizer)
    with pytest.raises(DataError, match=r"tokenizer '.*nowhere' could not be loaded.*'bpe:2048'"):
        load_corpus(replace(arguments, tokenizer=str(tmp_path / "nowhere")))


# Bytes.


def test_count_bytes_is_exact_when_a_block_ends_within_a_character():
    tokenizer = train_bpe(["a"], 257)  # one token a byte
    text = "é脳🧠é脳🧠"
    blocks = np.concatenate(list(pack([text, text], tokenizer, 7)))  # 18 + 1 + 18 + 1 tokens
    assert blocks.size == 35
    dataset = datasets.Dataset.from_dict({"input_ids": blocks.tolist()})
    assert count_bytes(dataset, tokenizer) == 34


def test_count_bytes_decodes_when_the_tokenizer_is_not_byte_level(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "▁ü": 1, "▁b": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2, 0, 2], [1, 0, 1, 1]]})
    assert count_bytes(dataset, tokenizer) == len("ü bb üü ü".encode())


def test_corpus_counts_what_it_holds(arguments):
    corpus = load_corpus(arguments)
    texts = documents(80)
    held_out = [text for text in texts if document_key(text)[0] < 0.2]
    assert corpus.num_eval_documents == len(held_out)
    assert corpus.num_train_documents == 80 - len(held_out)
    assert corpus.num_train_tokens == 16 * len(corpus.train)
    assert corpus.num_eval_tokens == 16 * len(corpus.evaluation)
    text = corpus.tokenizer.decode(
        [token for row in rows(corpus.evaluation) for token in row], skip_special_tokens=True
    )
    assert corpus.num_eval_bytes == len(text.encode())
    trained = set(texts) - set(held_out)
    assert corpus.num_train_bytes == sum(len(text.encode()) for text in trained)
    assert corpus.describe().splitlines()[0] == (
        f"train: {len(trained)} documents, {corpus.num_train_bytes:,} bytes, "
        f"{corpus.num_train_tokens:,} tokens"
    )


# The split.


@given(text=st.text(max_size=30))
def test_document_key_is_two_numbers_below_one(text):
    draw, place = document_key(text)
    assert 0.0 <= draw < 1.0
    assert 0.0 <= place < 1.0
    assert (draw, place) == document_key(text)


def test_document_key_is_what_it_was_in_the_first_release():
    assert document_key("connectome") == (0.46804824884940366, 0.08803350417156242)


@given(
    cuts=st.lists(st.floats(0.01, 0.99), max_size=4, unique=True),
    texts=st.lists(st.text(max_size=9)),
)
def test_parts_are_disjoint_and_cover_everything(cuts, texts):
    edges = [0.0, *sorted(cuts), 1.0]
    parts = [parse_part(f"{start!r}:{end!r}") for start, end in itertools.pairwise(edges)]
    for text in texts:
        assert sum(start <= document_key(text)[1] < end for start, end in parts) == 1


def load(arguments, tokenizer, texts, folder, **changes):
    """Load ``texts`` as a corpus of their own, as (training, held-out) streams of tokens."""
    name = write_text(folder / f"{document_key(repr((texts, changes)))}.txt", texts)
    return load_corpus(replace(arguments, dataset=name, **changes), tokenizer)


def decoded(dataset, tokenizer):
    tokens = [token for row in rows(dataset) for token in row]
    return tokenizer.decode(tokens).split("<|endoftext|>")[:-1]  # the last one is cut


def test_sides_and_parts_share_no_document_and_cover_all(arguments, tokenizer, tmp_path):
    texts = documents(200)
    small = {"block_size": 2}  # so that no more than one token is cut
    sides = []
    for part in ("0:0.3", "0.3:0.8", "0.8:1"):
        corpus = load(arguments, tokenizer, texts, tmp_path, part=part, **small)
        sides.append(decoded(corpus.train, tokenizer))
    sides.append(decoded(corpus.evaluation, tokenizer))
    seen = Counter(text for side in sides for text in side)
    assert max(seen.values()) == 1
    assert set(seen) <= set(texts)
    assert len(seen) >= len(texts) - len(sides)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_equal_when_documents_are_permuted(arguments, tokenizer, tmp_path, seed):
    texts = documents(60)
    shuffled = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    first = load(arguments, tokenizer, texts, tmp_path)
    second = load(arguments, tokenizer, shuffled, tmp_path)
    assert rows(first.train) == rows(second.train)
    assert rows(first.evaluation) == rows(second.evaluation)


def test_documents_keep_their_side_when_the_corpus_grows(arguments, tokenizer, tmp_path):
    texts = documents(120)
    before = load(arguments, tokenizer, texts[:60], tmp_path, block_size=2)
    after = load(arguments, tokenizer, texts, tmp_path, block_size=2)
    held_out = set(decoded(before.evaluation, tokenizer))
    assert held_out
    assert not held_out & set(decoded(after.train, tokenizer))


def test_duplicates_stay_on_one_side(arguments, tokenizer, tmp_path):
    texts = documents(30) * 3
    corpus = load(arguments, tokenizer, texts, tmp_path, block_size=2)
    assert not set(decoded(corpus.train, tokenizer)) & set(decoded(corpus.evaluation, tokenizer))
    assert corpus.num_train_documents + corpus.num_eval_documents == 90
    assert corpus.num_eval_documents % 3 == 0


@pytest.mark.parametrize("fraction", [1e-9, 0.999999])
def test_each_side_has_a_document_when_the_corpus_is_tiny(arguments, tokenizer, tmp_path, fraction):
    corpus = load(
        arguments, tokenizer, documents(3), tmp_path, eval_fraction=fraction, block_size=2
    )
    assert {corpus.num_train_documents, corpus.num_eval_documents} == {1, 2}


@pytest.mark.parametrize("texts", [["alone here"], ["twice the same"] * 2])
def test_load_corpus_refuses_fewer_than_two_documents(arguments, tokenizer, tmp_path, texts):
    with pytest.raises(DataError, match=rf"is {len(texts)} document\(s\).*Name an eval_dataset"):
        load(arguments, tokenizer, texts, tmp_path)


def test_eval_dataset_is_held_out_whole(arguments, tokenizer, tmp_path):
    held_out = write_text(tmp_path / "held.txt", documents(80)[:10] + documents(3, seed=1))
    corpus = load_corpus(replace(arguments, eval_dataset=held_out, block_size=2), tokenizer)
    assert corpus.num_eval_documents == 13
    assert corpus.num_train_documents == 70  # without the ten that are in both
    with pytest.raises(DataError, match=r"all 80 documents of .* are held out: eval_dataset"):
        load_corpus(replace(arguments, eval_dataset=arguments.dataset), tokenizer)


# Settings.


@pytest.mark.parametrize(
    "part", ["", "0.5", "0.8:0.2", "0:1.1", "-0.1:1", "a:b", "0:nan", "0:0", "0:1:2"]
)
def test_part_is_refused_when_it_is_no_part(part):
    with pytest.raises(ConfigError, match=rf"part is '{part}'; expected 'a:b'.*such as '0:0.8'"):
        DataArguments(part=part)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 1}, "block_size is 1; expected at least 2"),
        ({"eval_fraction": 0.0}, "eval_fraction is 0.0; expected a number between 0 and 1"),
        ({"eval_fraction": 1.0}, "eval_fraction is 1.0; expected a number between 0 and 1"),
        ({"max_train_tokens": 127}, "max_train_tokens is 127, less than one block of 128"),
        ({"max_eval_tokens": 5}, "max_eval_tokens is 5, less than one block of 128"),
        ({"tokenizer": "bpe:many"}, "tokenizer is 'bpe:many'; expected 'bpe:SIZE'"),
        ({"streaming": True}, "streaming never sees the end.*max_eval_tokens or name"),
    ],
)
def test_arguments_are_refused_when_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataArguments(**settings)


def test_arguments_have_help_and_parse():
    assert all(field.metadata["help"] for field in fields(DataArguments))
    (parsed,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        ["--dataset", "x.txt", "--max_train_tokens", "4096", "--eval_fraction", "0.1"]
    )
    assert parsed == DataArguments(dataset="x.txt", max_train_tokens=4096, eval_fraction=0.1)


def test_bounds_are_exact(arguments):
    every = load_corpus(arguments)
    some = load_corpus(replace(arguments, max_train_tokens=100, max_eval_tokens=50))
    assert (some.num_train_tokens, some.num_eval_tokens) == (96, 48)
    assert rows(some.train) == rows(every.train)[:6]
    assert rows(some.evaluation) == rows(every.evaluation)[:3]


def test_load_corpus_refuses_text_shorter_than_a_block(arguments):
    with pytest.raises(
        DataError, match=r"corpus.txt.* has \d+ tokens, less than one block of 99999"
    ):
        load_corpus(replace(arguments, block_size=99999))


def test_load_corpus_refuses_a_part_without_documents(arguments):
    with pytest.raises(DataError, match=r"part '0:1e-09' of .* has none of its \d+ training"):
        load_corpus(replace(arguments, part="0:1e-09"))


# The cache.


def test_second_load_reads_the_cache(arguments, monkeypatch):
    first = load_corpus(arguments)
    module = sys.modules[pack.__module__]
    monkeypatch.setattr(module, "_batches", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(module, "train_bpe", lambda *_: pytest.fail("trained again"))
    second = load_corpus(arguments)
    assert rows(first.train) == rows(second.train)
    assert tokenizer_digest(first.tokenizer) == tokenizer_digest(second.tokenizer)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_cache_is_rebuilt_when_damaged(arguments, damage):
    first = load_corpus(arguments)
    expected = rows(first.train), rows(first.evaluation), first.tokenizer.get_vocab()
    files = sorted(Path(arguments.cache_dir, "hf_connectome").iterdir())
    assert [file.name.split("-")[0] for file in files] == ["blocks", "blocks", "bpe"]
    for file in files:
        whole = bytearray(file.read_bytes())
        whole[len(whole) // 2] ^= 1
        kept = {"flip": len(whole), "truncate": len(whole) // 2, "empty": 0}[damage]
        file.unlink()  # a new file: the old one may be mapped
        file.write_bytes(whole[:kept])
    again = load_corpus(arguments)
    assert (rows(again.train), rows(again.evaluation), again.tokenizer.get_vocab()) == expected
    assert sorted(Path(arguments.cache_dir, "hf_connectome").iterdir()) == files


def test_nothing_is_cached_when_packing_fails(arguments):
    with pytest.raises(DataError, match="less than one block"):
        load_corpus(replace(arguments, block_size=99999))
    names = [file.name for file in Path(arguments.cache_dir, "hf_connectome").iterdir()]
    assert [name.split("-")[0] for name in names] == ["bpe"]


# Text files.


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)],
)
def test_text_is_the_same_when_compressed(arguments, tmp_path, suffix, compress):
    expected = load_corpus(arguments)
    packed = tmp_path / f"packed.txt{suffix}"
    packed.write_bytes(compress(Path(arguments.dataset).read_bytes()))
    assert rows(load_corpus(replace(arguments, dataset=str(packed))).train) == rows(expected.train)
    assert rows(load_corpus(replace(arguments, dataset=str(packed))).evaluation) == rows(
        expected.evaluation
    )


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".bz2", ""])
def test_text_is_refused_when_damaged(arguments, tmp_path, suffix):
    damaged = tmp_path / f"damaged.txt{suffix}"
    damaged.write_bytes(b"\xff\xfe no text")
    with pytest.raises(DataError, match=r"damaged.txt.* cannot be read as UTF-8 text"):
        load_corpus(replace(arguments, dataset=str(damaged)))


@pytest.mark.parametrize("name", ["folder", "folder/**/*.txt", "folder/*/*"])
def test_folder_and_glob_are_one_document_a_file(arguments, tokenizer, tmp_path, monkeypatch, name):
    for number, text in enumerate(documents(20)):
        file = tmp_path / "folder" / f"{number % 3}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for dataset in (name, str(tmp_path / name)):
        corpus = load_corpus(replace(arguments, dataset=dataset), tokenizer)
        assert corpus.num_train_documents + corpus.num_eval_documents == 20
        assert rows(corpus.train) == rows(load(arguments, tokenizer, documents(20), tmp_path).train)


def test_folder_is_refused_when_it_mixes_kinds(arguments, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"files of 2 kinds \('json', 'text'\); .* by a glob"):
        load_corpus(replace(arguments, dataset=str(tmp_path)))


def test_folder_is_refused_when_empty(arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file of text, bin, csv, json, parquet"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "empty")))


def test_corpus_is_refused_when_it_holds_no_text(arguments, tmp_path):
    (tmp_path / "nothing.txt").touch()
    with pytest.raises(DataError, match=r"nothing.txt' holds no text"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "nothing.txt")))


def test_missing_file_is_refused_with_its_nearest_sibling(arguments, tmp_path):
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'corpus.txt'\?"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "corpsu.txt")))
    with pytest.raises(DataError, match=r"does not exist. There is nothing in '.*nowhere'"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "nowhere/corpus.txt")))


def test_hub_dataset_is_refused_with_a_hint_when_offline(arguments, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=r"'python-stdlob' is no file or folder here, and as a Hub dataset it could not be "
        r"loaded \(Couldn't reach the Hub.\). Without a network, name a local file "
        r".* Did you mean 'python-stdlib'\?",
    ):
        load_corpus(replace(arguments, dataset="python-stdlob"))


@pytest.mark.skipif(not OPENSTAX.exists(), reason="textbooks are not at hand")
def test_textbooks_are_many_documents_in_one_xz(arguments, tokenizer):
    corpus = load_corpus(
        replace(arguments, dataset=str(OPENSTAX), max_train_tokens=4096, max_eval_tokens=4096),
        tokenizer,
    )
    assert corpus.num_train_documents > 50
    assert corpus.num_train_tokens == corpus.num_eval_tokens == 4096


# Rows: json, parquet, csv, the Hub.


def write_rows(path, texts):
    table = datasets.Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})
    getattr(table, {".jsonl": "to_json", ".parquet": "to_parquet", ".csv": "to_csv"}[path.suffix])(
        str(path)
    )
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_rows_are_documents(arguments, tokenizer, tmp_path, suffix):
    name = write_rows(tmp_path / f"rows{suffix}", documents(80))
    corpus = load_corpus(replace(arguments, dataset=name), tokenizer)
    expected = load_corpus(arguments, tokenizer)
    assert rows(corpus.train) == rows(expected.train)
    assert rows(corpus.evaluation) == rows(expected.evaluation)


def test_rows_without_text_are_no_documents(arguments, tokenizer, tmp_path):
    name = write_rows(tmp_path / "rows.jsonl", ["", None, *documents(80)])
    assert rows(load_corpus(replace(arguments, dataset=name), tokenizer).train) == rows(
        load_corpus(arguments, tokenizer).train
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["body", "number"])
def test_rows_are_refused_without_a_text_column(arguments, tokenizer, tmp_path, column, streaming):
    name = write_rows(tmp_path / "rows.jsonl", documents(3))
    changed = replace(
        arguments, dataset=name, text_column=column, streaming=streaming, max_eval_tokens=16
    )
    with pytest.raises(DataError, match=f"no column '{column}' of text; its columns are text, num"):
        load_corpus(changed, tokenizer)


def test_rows_are_refused_when_empty_or_damaged(arguments, tokenizer, tmp_path):
    name = write_rows(tmp_path / "rows.parquet", [])
    with pytest.raises(DataError, match=r"rows.parquet' could not be read as parquet: .* no data"):
        load_corpus(replace(arguments, dataset=name), tokenizer)
    with pytest.raises(DataError, match=r"rows.parquet' has no rows. Name another"):
        load_corpus(replace(arguments, dataset=name, streaming=True, max_eval_tokens=16), tokenizer)
    (tmp_path / "damaged.jsonl").write_text("{no json")
    with pytest.raises(DataError, match=r"damaged.jsonl' could not be read as json"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "damaged.jsonl")), tokenizer)


def test_hub_dataset_is_asked_for_by_config_and_split(arguments, tokenizer, monkeypatch):
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options.get("name"), options["split"], options["streaming"]))
        return datasets.Dataset.from_dict({"text": documents(40, seed=len(asked))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = replace(arguments, dataset="org/corpus", dataset_config="plain")
    corpus = load_corpus(replace(hub, eval_dataset="org/corpus", eval_split="test"), tokenizer)
    assert (corpus.num_train_documents, corpus.num_eval_documents) == (40, 40)
    load_corpus(replace(hub, eval_dataset="org/other"), tokenizer)
    assert asked == [
        ("org/corpus", "plain", "train", False),
        ("org/corpus", "plain", "test", False),
        ("org/corpus", "plain", "train", False),
        ("org/other", None, "train", False),
    ]


# Streaming.


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_streaming_has_the_same_documents_in_the_corpus_order(
    arguments, tokenizer, tmp_path, suffix
):
    texts = documents(80)
    name = arguments.dataset if suffix == ".txt" else write_rows(tmp_path / "rows.jsonl", texts)
    stream = replace(arguments, dataset=name, streaming=True, max_eval_tokens=10**6, part="0.1:0.9")
    corpus = load_corpus(stream, tokenizer)
    keys = map(document_key, texts)
    train = [
        text
        for text, (draw, place) in zip(texts, keys, strict=True)
        if draw >= 0.2 and 0.1 <= place < 0.9
    ]
    held_out = [text for text in texts if document_key(text)[0] < 0.2]
    for dataset, side in ((corpus.train, train), (corpus.evaluation, held_out)):
        blocks = np.concatenate(list(pack(side, tokenizer, 16)))
        assert rows(dataset) == [tuple(block) for block in blocks.tolist()]
    assert rows(corpus.train) == rows(corpus.train)  # it can be read again
    whole = load_corpus(replace(stream, streaming=False), tokenizer)
    assert len(rows(corpus.train)) == len(whole.train)
    assert (corpus.num_train_tokens, corpus.num_eval_tokens) == (None, whole.num_eval_tokens)
    assert corpus.describe().startswith("train: streamed\neval: ")


def test_streaming_resumes_when_blocks_are_skipped(arguments, tokenizer):
    stream = replace(arguments, streaming=True, max_eval_tokens=32, max_train_tokens=320)
    corpus = load_corpus(stream, tokenizer)
    every = rows(corpus.train)
    assert len(every) == 20
    assert rows(corpus.train.skip(7)) == every[7:]
    assert corpus.num_eval_tokens == 32


def test_streaming_leaves_out_what_eval_dataset_holds(arguments, tokenizer, tmp_path):
    held_out = write_text(tmp_path / "held.txt", documents(80)[:10])
    stream = replace(arguments, streaming=True, eval_dataset=held_out)
    corpus = load_corpus(stream, tokenizer)
    whole = load_corpus(replace(stream, streaming=False), tokenizer)
    assert len(rows(corpus.train)) == len(whole.train)
    assert rows(corpus.evaluation) == rows(whole.evaluation)


def test_streaming_refuses_to_train_a_tokenizer(arguments):
    with pytest.raises(
        ConfigError, match=r"'bpe:300' is trained on all training documents.*'gpt2'"
    ):
        load_corpus(replace(arguments, streaming=True, max_eval_tokens=16))


# Shards.


def test_shards_are_cut_across_files_and_held_out_by_file(arguments, tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"shard_{number}.bin", range(100 * number, 100 * number + 50))
    shards = replace(arguments, dataset=str(tmp_path / "*.bin"), tokenizer="bpe:2048")
    corpus = load_corpus(shards)
    tokens = [*range(50), *range(100, 150)]
    assert rows(corpus.train) == [tuple(tokens[i : i + 16]) for i in range(0, 96, 16)]
    assert rows(corpus.evaluation) == [tuple(range(200 + i, 216 + i)) for i in (0, 16, 32)]
    assert (corpus.tokenizer, corpus.num_eval_bytes) == (None, None)
    bounded = load_corpus(replace(shards, max_train_tokens=70, max_eval_tokens=16))
    assert rows(bounded.train) == rows(corpus.train)[:4]
    assert bounded.num_eval_tokens == 16
    two = load_corpus(replace(shards, eval_fraction=0.6))
    assert (two.num_train_tokens, two.num_eval_tokens) == (48, 96)
    named = load_corpus(replace(shards, eval_dataset=str(tmp_path / "shard_0.bin")))
    assert rows(named.evaluation)[0] == tuple(range(16))
    assert rows(named.train)[0] == tuple(range(100, 116))


def test_shards_are_not_copied(arguments, tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(2**16))
    write_shard(tmp_path / "b.bin", np.arange(2**16))
    train = load_corpus(replace(arguments, dataset=str(tmp_path / "?.bin"))).train
    before = rows(train)[1]
    np.memmap(tmp_path / "a.bin", dtype="<u2", mode="r+", offset=1024)[16:32] = 7
    assert before == tuple(range(16, 32))
    assert rows(train)[1] == (7,) * 16


def test_shards_have_bytes_when_the_tokenizer_is_known(arguments, tokenizer, tmp_path):
    tokens = stream_of(documents(5), tokenizer)
    for name in "ab":
        write_shard(tmp_path / f"{name}.bin", tokens)
    corpus = load_corpus(replace(arguments, dataset=str(tmp_path / "?.bin")), tokenizer)
    text = tokenizer.decode(tokens[: corpus.num_eval_tokens], skip_special_tokens=True)
    assert corpus.num_eval_bytes == len(text.encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"magic": 7}, "has magic 7, expected 20240520"),
        ({"version": 2}, "has version 2, expected 1"),
        ({"count": 51}, "announces 51 tokens and holds 50"),
        ({"tokens": []}, "announces 0 tokens and holds 0"),
        ({"tokens": [1, 2, 300]}, "holds token 300, the tokenizer has 300"),
    ],
)
def test_shard_is_refused_when_damaged(arguments, tokenizer, tmp_path, damage, message):
    write_shard(tmp_path / "a.bin", range(50))
    write_shard(tmp_path / "b.bin", **{"tokens": range(50), **damage})
    with pytest.raises(DataError, match=f"b.bin' {message}"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "?.bin")), tokenizer)


def test_shard_is_refused_when_shorter_than_its_header(arguments, tmp_path):
    write_shard(tmp_path / "a.bin", range(50))
    (tmp_path / "b.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(DataError, match=r"b.bin' has 1000 bytes, the header alone 1024"):
        load_corpus(replace(arguments, dataset=str(tmp_path / "?.bin")))


def test_shards_refuse_settings_that_are_for_text(arguments, tmp_path):
    shard = write_shard(tmp_path / "a.bin", range(50))
    for changes in ({"part": "0:0.5"}, {"streaming": True, "max_eval_tokens": 16}):
        with pytest.raises(ConfigError, match="streaming and part are for text"):
            load_corpus(replace(arguments, dataset=shard, **changes))
    for changes in ({}, {"eval_dataset": shard}):
        with pytest.raises(ConfigError, match=r"two sets of .bin files.*Name an eval_dataset"):
            load_corpus(replace(arguments, dataset=shard, **changes))
    for changes in ({"dataset": shard, "eval_dataset": arguments.dataset}, {"eval_dataset": shard}):
        with pytest.raises(ConfigError, match=r"text and tokens .* Name two of one kind"):
            load_corpus(replace(arguments, **changes))


# The built-in corpus.


@pytest.fixture
def stdlib(tmp_path, monkeypatch):
    root = tmp_path / "lib"
    kept = ["abc.py", "json/decoder.py", "turtledemo/tree.py"]
    skipped = ["test/a.py", "lib2to3/tests/b.py", "idlelib/idle_test/c.py", "site-packages/d.py"]
    skipped += ["dist-packages/e.py", "_sysconfigdata__linux.py", "data.txt"]
    for name, text in zip(kept + skipped, documents(10), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "latin.py").write_bytes("# café".encode("latin-1"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return documents(10)[:3]


def test_stdlib_is_its_sources_without_tests(arguments, tokenizer, stdlib):
    corpus = load_corpus(
        replace(arguments, dataset="python-stdlib", block_size=2, eval_fraction=1e-9), tokenizer
    )
    assert (corpus.num_train_documents, corpus.num_eval_documents) == (2, 1)
    read = decoded(corpus.train, tokenizer) + decoded(corpus.evaluation, tokenizer)
    assert set(read) <= set(stdlib)


def test_stdlib_of_this_python_is_megabytes_of_text(arguments, tokenizer):
    corpus = load_corpus(
        replace(arguments, dataset="python-stdlib", max_train_tokens=4096, max_eval_tokens=1024),
        tokenizer,
    )
    assert corpus.num_train_bytes > 5e6
    assert (corpus.num_train_tokens, corpus.num_eval_tokens) == (4096, 1024)


# The collator, and import.


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_collate_stacks_blocks(make):
    batch = pickle.loads(pickle.dumps(collate))(  # noqa: S301 (our own bytes)
        [{"input_ids": make([1, 2, 3])}, {"input_ids": make([4, 5, 6])}]
    )
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    # The first token of a block is nobody's prediction.
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, 6]]


def test_import_needs_neither_datasets_nor_transformers():
    code = (
        "import sys, hf_connectome.data; "
        "assert not {'datasets', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_broken_json_lines_say_what_is_broken(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one"}\n{"text": broken\n')
    with pytest.raises(DataError, match=r"could not be read as json: .*JSON parse error"):
        load_corpus(DataArguments(dataset=str(file), cache_dir=str(tmp_path / "cache")))


def test_full_disk_is_named_when_the_cache_is_written(arguments, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for target in ("pathlib.Path.write_text", "hf_connectome.data.blocks._table"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(StorageError, match=r"cannot write .*make room"):
                load_corpus(arguments)


def test_identity_is_of_the_text_not_of_its_place(arguments, tokenizer, tmp_path):
    first = load_corpus(arguments, tokenizer).identity()
    moved = write_text(tmp_path / "moved.txt", documents(80)[::-1])
    assert load_corpus(replace(arguments, dataset=moved), tokenizer).identity() == first
    other = write_text(tmp_path / "other.txt", documents(80, seed=1))
    assert load_corpus(replace(arguments, dataset=other), tokenizer).identity() != first
