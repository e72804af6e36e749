"""The published models.json: what it must hold, and how fast it is read."""

import time

import pytest

from ppq_proxy.catalog import Catalog, Offering, check, default_path

CONTENT = default_path().read_bytes()
CATALOG = Catalog.load(CONTENT)


def test_the_file_is_good() -> None:
    assert list(check.problems(CONTENT)) == []


def test_no_short_name_is_ambiguous() -> None:
    assert CATALOG.ambiguous == ()


def test_at_least_four_hundred_chat_models_are_for_sale() -> None:
    chat = CATALOG.listed("chat")
    assert len(chat) >= 400
    assert len(CATALOG.restrict({"default"}).listed("chat")) >= 400
    assert all(one.prices.charge({"input": 1_000, "output": 1_000}) > 0 for one in chat)


def test_PPQ_014_every_chat_row_fills_every_column() -> None:
    for offering in CATALOG.listed("chat"):
        shown = CATALOG.public(offering)
        for column in ("name", "id", "provider", "context_length", "created_at", "averageCost", "max_output_tokens"):
            assert shown[column], (offering.id, column)
        assert shown["pricing"]["input_per_1M_tokens"] > 0
        assert shown["pricing"]["output_per_1M_tokens"] > 0
        assert shown["promptsPer1Usd"] is not None
        assert shown["architecture"]["output_modalities"], offering.id


def test_a_charge_of_chat_is_the_list_price_times_1055() -> None:
    gpt = CATALOG.resolve("openai/gpt-5-mini")
    assert gpt.prices.lines({"input": 1, "output": 1})[0].usd == "0.26375"
    assert gpt.prices.charge({"input": 1_000_000, "output": 1_000_000}) == 2_373_750_000


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-sonnet-4.6", "anthropic/claude-sonnet-4.6"),
        ("claude-sonnet-4-5", "anthropic/claude-sonnet-4.5"),
        ("claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4.5"),
        ("gpt-5-mini", "openai/gpt-5-mini"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_PPQ_024_PPQ_025_documented_names_resolve(name: str, model: str) -> None:
    assert CATALOG.resolve(name).id == model


def test_the_local_model_is_sold_alone_where_nothing_else_is_configured() -> None:
    local = CATALOG.restrict({"local"})
    assert [one.id for one in local.offerings] == ["smollm2-135m"]
    offering = local.offerings[0]
    assert (offering.provider, offering.context, offering.max_output) == ("local", 4096, 2048)
    assert offering.prices.charge({"input": 1_000, "output": 1_000}) == 10_000 + 20_000


@pytest.mark.parametrize(
    "name",
    [
        "private/kimi-k2-5",
        "private/deepseek-r1-0528",
        "private/gpt-oss-120b",
        "private/llama3-3-70b",
        "private/qwen3-vl-30b",
        "private/glm-5-1",
        "private/gemma4-31b",
    ],
)
def test_PPQ_040_to_PPQ_046_private_models_are_listed_with_all_types_only(name: str) -> None:
    assert CATALOG.resolve(name).private
    assert name in {one.id for one in CATALOG.listed("all")}
    assert name not in {one.id for one in CATALOG.listed()}


def of(name: str, kind: str) -> Offering:
    offering = CATALOG.resolve(name)
    assert offering.type == kind
    return offering


def test_PPQ_052_PPQ_063_PPQ_068_documented_audio_models_are_there() -> None:
    assert of("nova-3", "audio").prices.charge({"second": 60_000}) == 6_330_000
    assert "transcription" in of("nova-2", "audio").capabilities
    for name in ("aura-2-arcas-en", "aura-2-thalia-en", "aura-2-aries-en", "deepgram_aura_2", "eleven_turbo_v2_5"):
        assert "speech" in of(name, "audio").capabilities


def test_PPQ_082_PPQ_083_the_documented_picture_costs_what_is_documented() -> None:
    banana = of("nano-banana-2", "image")
    variant = banana.variant({"resolution": "1K", "n": 1})
    assert banana.prices.charge({"image": 1}, variant) == 80_500_000
    assert banana.prices.charge({"image": 1}, banana.variant({})) == 80_500_000
    assert banana.prices.charge({"image": 1}, banana.variant({"resolution": "4K"})) == 161_000_000


def test_PPQ_070_image_models_say_which_parameters_they_take() -> None:
    for offering in CATALOG.listed("image,video"):
        assert offering.parameters, offering.id
        required = {name for name, rules in offering.parameters.items() if rules.get("required")}
        assert required & {"prompt", "image_url"}, offering.id
    assert "prompt" not in (of("bria-remove-background", "image").parameters or {})
    assert (of("clarity-upscaler", "image").parameters or {})["image_url"] == {"required": True}


def test_PPQ_092_the_documented_video_costs_what_is_documented() -> None:
    kling = of("kling-2.1-pro", "video")
    assert kling.prices.charge({}, kling.variant({"duration": "5"})) == 287_500_000


@pytest.mark.parametrize(
    ("name", "durations"),
    [
        ("veo3", ["8"]),
        ("veo3-fast", ["8"]),
        ("veo3-i2v", ["8"]),
        ("kling-2.1-pro", ["5", "10"]),
        ("kling-2.1-master", ["5", "10"]),
        ("kling-2.1-master-i2v", ["5", "10"]),
        ("kling-2.1-standard", ["5", "10"]),
        ("kling-2.5-turbo", ["5", "10"]),
        ("kling-2.5-turbo-i2v", ["5", "10"]),
        ("runway-gen4", ["5", "10"]),
        ("runway-aleph", ["5", "10"]),
    ],
)
def test_PPQ_099_PPQ_100_documented_videos_are_there_with_their_durations(name: str, durations: list[str]) -> None:
    video = of(name, "video")
    assert (video.parameters or {})["duration"]["values"] == durations
    for duration in durations:
        assert video.prices.charge({}, video.variant({"duration": duration})) > 0
    assert ("image_url" in (video.parameters or {})) == name.endswith("i2v")


def test_PPQ_221_PPQ_222_models_of_the_examples_are_there() -> None:
    picture = of("gpt-image-1", "image")
    assert picture.prices.charge({"image": 1}, picture.variant({"size": "1024x1024"})) == 48_300_000
    assert of("kling-2.1-standard", "video")


def test_PPQ_103_all_27_data_endpoints_have_a_fixed_price() -> None:
    paths = [one for one in CATALOG.listed("data") if one.id.startswith("api/")]
    assert len(paths) == 27
    for one in paths:
        assert one.method in ("GET", "POST")
        assert one.prices.charge({}) > 0
    assert CATALOG.resolve("api/apollo/people-search").prices.charge({}) == 23_000_000


def test_PPQ_137_to_PPQ_143_embedding_models_come_from_several_vendors() -> None:
    for name in ("openai/text-embedding-3-small", "openai/text-embedding-3-large"):
        assert of(name, "embedding").context == 8191
        assert "dimensions" in (of(name, "embedding").parameters or {})
    assert of("text-embedding-3-small", "embedding").prices.charge({"input": 1_000_000}) == 22_000_000
    assert {"openai", "qwen", "nvidia"} <= {one.provider for one in CATALOG.listed("embedding")}


def test_reading_the_file_is_quick() -> None:
    best = min(timed() for _ in range(5))
    assert best < 0.06, f"{best * 1000:.0f} ms of CPU: the usual is 30"


def timed() -> float:
    start = time.process_time()
    Catalog.load(CONTENT)
    return time.process_time() - start
