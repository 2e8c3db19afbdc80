"""The example for Ray Serve, on a cluster of two nodes on this machine."""

import asyncio
import functools
import io
import json
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile

from musicgen_jax import MusicGen, testing
from musicgen_jax.audio.files import to_int16
from musicgen_jax.audio.level import apply_level
from tests.helpers import shallow
from tests.helpers.ray_cluster import RayCluster

pytestmark = [pytest.mark.extra, pytest.mark.slow]

SLOTS, SECONDS, LONGEST = 2, 0.5, 5.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "debug"
    testing.save_random_model(path, shallow.TEXT)
    return path


@pytest.fixture(scope="module")
def port(model):
    """Of a proxy in front of two replicas."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    from examples import ray_serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with RayCluster() as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            serve.start(http_options={"port": port})
            args = {"model": str(model), "slots": SLOTS, "replicas": 2, "max_duration": LONGEST}
            serve.run(ray_serve.app({name: str(value) for name, value in args.items()}))
            yield port
            serve.shutdown()
        finally:
            ray.shutdown()


def opened(port: int, body: dict):
    headers = {"Content-Type": "application/json"}
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data, headers)
    return urllib.request.urlopen(request, timeout=60)


def ask(port: int, **body) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers by lower-case names, and the body."""
    try:
        with opened(port, body) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def samples(wav: bytes) -> np.ndarray:
    """Int16 [W, C]."""
    return soundfile.read(io.BytesIO(wav), dtype="int16", always_2d=True)[0]


def test_the_samples_are_those_of_generate(model, port):
    texts = ["bells", "a calm waltz", "drums", "harp", "tuba", "a flute"]

    async def ask_all():
        asking = functools.partial(ask, port, duration=SECONDS)
        calls = (
            asyncio.to_thread(asking, prompt=text, seed=i, stream=i % 2 == 1)
            for i, text in enumerate(texts)
        )
        return await asyncio.gather(*calls)

    answers = asyncio.run(ask_all())
    alone = MusicGen.from_pretrained(model)
    for i, (text, (status, headers, wav)) in enumerate(zip(texts, answers, strict=True)):
        assert (status, headers["x-seed"]) == (200, str(i))
        made = alone.generate([text], duration=SECONDS, seed=i, slots=SLOTS)
        assert headers["x-program"] == str(made.program)
        level = apply_level(made.audio[0], "clip", 0.0)
        np.testing.assert_array_equal(samples(wav), to_int16(level).T)


def test_a_wrong_request_is_refused_in_the_same_words_as_by_the_server(port):
    status, _, body = ask(port, prompt="bells", duration=100)
    error = json.loads(body)["error"]
    assert (status, error["param"], error["code"]) == (400, "duration", "invalid_value")


def test_a_replica_whose_model_has_stopped_is_not_healthy(model, port):
    from examples import ray_serve

    replica = ray_serve.Music.func_or_class(str(model), SLOTS, SECONDS)
    replica.check_health()
    replica._scheduler.close()
    with pytest.raises(RuntimeError, match="the scheduler has stopped"):
        replica.check_health()


def test_a_clip_in_hand_is_finished_when_the_replicas_stop(port):
    from ray import serve

    body = {"prompt": "bells", "duration": LONGEST, "stream": True, "response_format": "pcm"}
    with opened(port, body) as answer:
        length = len(answer.read(1))
        stopping = threading.Thread(target=serve.delete, args=("default",))
        stopping.start()
        length += len(answer.read())
    stopping.join()
    assert length == 2 * LONGEST * shallow.TEXT.sample_rate
