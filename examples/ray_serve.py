r"""MusicGen behind Ray Serve: each replica holds a model and its slots, on a machine of a cluster.

    pip install 'musicgen-jax[serve]' 'ray[serve]'
    ray start --head
    cd examples && serve run ray_serve:app model=nano slots=4 replicas=2
    curl -s http://127.0.0.1:8000/ -H 'Content-Type: application/json' \
      -d '{"prompt": "a calm waltz for solo piano", "duration": 8, "seed": 3}' -o waltz.wav

The fields are those of `POST /v1/audio/generate`, and so are the answers. A replica makes the clip
that `model.generate([...], seed=3, slots=4)` makes, whichever other clips it has in hand. Ray Serve
asks for no token: leave it on loopback, or put a proxy in front.
"""

import os

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from musicgen_jax import MusicGen
from musicgen_jax.runtime import compile_cache
from musicgen_jax.serving.http.asked import GENERATE
from musicgen_jax.serving.http.body import read_json
from musicgen_jax.serving.http.errors import as_http
from musicgen_jax.serving.http.listener import Listener
from musicgen_jax.serving.http.settings import Settings
from musicgen_jax.serving.http.sound import streamed, whole_answer
from musicgen_jax.serving.scheduler import Scheduler

_RETRY_AFTER = 10  # seconds, for a client that is sent away


@serve.deployment(
    ray_actor_options={"num_cpus": 1},  # on a GPU: {"num_gpus": 1}
    health_check_period_s=10,
    graceful_shutdown_timeout_s=600,  # for the clips in hand when a replica is stopped
)
class Music:
    """One replica.

    Args:
      model: nano, a converted model's folder, or an official name; found on every machine.
      slots: N, the clips that are made at once. The result of a seed depends on it.
      max_duration: seconds of the longest clip.
    """

    def __init__(self, model: str, slots: int, max_duration: float):
        compile_cache.enable()
        parts = MusicGen.from_pretrained(model).parts
        name = os.path.basename(os.path.normpath(model))
        self._settings = Settings(model=name, max_duration=max_duration)
        pools = {"slots": slots, "seconds": max_duration, "negatives": True}
        self._scheduler = Scheduler(parts, **pools, queue=2 * slots)
        self._scheduler.ready.wait()  # Ray sends nothing before: nothing compiles any more

    async def __call__(self, request: Request) -> Response:
        """Makes a clip; if the client leaves, Ray cancels this, and the slot is free."""
        settings = self._settings
        try:
            body = await read_json(request, settings)
            asked = GENERATE.read(body, self._scheduler.parts.config, settings)
            deadline = asked.deadline or settings.deadline
            listener = Listener(self._scheduler.submit(asked.request, deadline=deadline))
            if asked.streamed:
                return await streamed(asked, listener, settings.model, {})
            return await whole_answer(asked, listener, settings.model)
        except Exception as error:
            return as_http(error, retry_after=_RETRY_AFTER).response()

    def check_health(self) -> None:
        """Raises if the model has stopped working: Ray then replaces the replica."""
        if (why := self._scheduler.closing) is not None:
            raise RuntimeError(why)

    def __del__(self) -> None:
        """Ray calls it at the end, when every clip in hand is finished."""
        if hasattr(self, "_scheduler"):
            self._scheduler.close()


def app(args: dict[str, str]) -> Application:
    """What `serve run ray_serve:app model=MODEL slots=N replicas=R max_duration=SECONDS` runs."""
    slots = int(args.get("slots", 4))
    replicas = Music.options(
        num_replicas=int(args.get("replicas", 1)),
        max_ongoing_requests=2 * slots,  # in a slot, or ready for the next one
        max_queued_requests=32,  # further ones get 503
    )
    return replicas.bind(args.get("model", "nano"), slots, float(args.get("max_duration", 30)))
