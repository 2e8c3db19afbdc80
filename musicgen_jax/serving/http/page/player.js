"use strict";
// One clip sounds at a time. Its samples are queued one after the other at exact times, so that
// there are no gaps. The context has the clip's own rate: no sample is interpolated.

const LEAD = 0.08; // seconds between the order to play and the first sample
const AHEAD = 0.3; // seconds that must be there before a clip plays while it is made
const ENDLESS_AHEAD = 8; // the same for endless music on a machine slower than real time
const MARGIN = 1.15; // a machine slower than real time is not always equally slow

const player = {
  context: null,
  output: null,
  clip: null,
  playing: false,
  holding: false, // wants to play, and waits for more
  nodes: new Set(),
  from: 0, // the frame that sounds at `zero`, by the context's clock
  zero: 0,
  turn: 0, // counts the orders to play
  drawn: 0, // when, in milliseconds
  queued: 0, // the frame up to which samples are queued

  // Browsers let a page sound only if a click or a key began it.
  wake(rate) {
    if (player.context?.sampleRate !== rate) {
      player.context?.close();
      player.context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
      player.output = player.context.createAnalyser();
      player.output.connect(player.context.destination);
    }
    player.context.resume();
  },
  async play(clip, from = clip.card.position) {
    player.pause();
    player.wake(clip.rate);
    const turn = ++player.turn;
    await clip.load();
    if (turn !== player.turn) return; // meanwhile another clip was chosen
    if (player.clip && player.clip !== clip) player.clip.card.refresh();
    player.clip = clip;
    player.from = from >= clip.total ? 0 : from;
    player.holding = true;
    player.arrived(clip);
    clip.card.refresh();
  },
  pause() {
    const { clip } = player;
    if (!clip || !(player.playing || player.holding)) return;
    clip.card.position = player.frame();
    player.silence();
    player.holding = false;
    clip.card.refresh();
  },
  silence() {
    for (const node of player.nodes) node.onended = null, node.stop();
    player.nodes.clear();
    player.playing = false;
  },
  frame() {
    if (!player.playing) return player.from;
    const passed = Math.max(0, (player.context.currentTime - player.zero) * player.clip.rate);
    return Math.min(player.from + passed, player.queued);
  },
  // Whether what is there lasts until the rest is made.
  enough(clip) {
    if (clip.end) return true;
    const there = (clip.frames - player.from) / clip.rate;
    // It must outlast the longest wait so far, and half of that again.
    if (clip.speed === null || there < Math.max(AHEAD, 1.5 * clip.gap)) return false;
    if (clip.endless) return clip.speed * MARGIN > 1 || there >= ENDLESS_AHEAD;
    const missing = (clip.total - clip.frames) / clip.rate;
    return there >= missing * MARGIN * (1 / clip.speed - 1);
  },
  // The oldest frames of a clip are gone.
  dropped(clip, frames) {
    if (clip !== player.clip) return;
    player.queued -= frames;
    player.from -= frames; // of what is queued already it may lie before the first one that is kept
    if (!player.playing) player.from = Math.max(0, player.from);
  },
  // More of a clip is here, or its end.
  arrived(clip) {
    if (clip !== player.clip) return;
    if (player.holding && player.enough(clip)) {
      player.holding = false;
      if (player.from >= clip.frames) return;
      player.playing = true;
      player.zero = null; // the first samples are made ready before the time is set
      player.queued = player.from = Math.floor(player.from);
    }
    if (player.playing && player.queued < clip.frames) player.queue(clip);
  },
  queue(clip) {
    const sound = clip.slice(player.queued);
    const buffer = player.context.createBuffer(clip.channels, sound[0].length, clip.rate);
    sound.forEach((samples, channel) => buffer.copyToChannel(samples, channel));
    // On a whole frame: the samples then need no interpolation.
    player.zero ??= Math.ceil((player.context.currentTime + LEAD) * clip.rate) / clip.rate;
    const at = player.zero + (player.queued - player.from) / clip.rate;
    if (at < player.context.currentTime) return player.ranDry(clip);
    const node = player.context.createBufferSource();
    node.buffer = buffer;
    node.connect(player.output);
    node.onended = () => player.nodes.delete(node);
    node.start(at);
    player.nodes.add(node);
    player.queued = clip.frames;
  },
  ranDry(clip) {
    player.silence();
    clip.underruns += 1;
    player.from = player.queued;
    player.holding = true;
    player.arrived(clip);
    clip.card.refresh();
  },
  // Called for every picture of the page.
  tick() {
    const { clip } = player;
    if (player.playing && player.frame() >= player.queued) {
      if (!clip.end) player.ranDry(clip);
      else {
        player.silence();
        player.from = clip.card.position = 0;
        clip.card.refresh();
      }
    }
    const now = performance.now();
    if (player.playing && now - player.drawn > 40) (player.drawn = now), clip.card.move(player.frame());
    requestAnimationFrame(player.tick);
  },
};
