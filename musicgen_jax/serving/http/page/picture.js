"use strict";
// Waves and pitches, drawn.

// A canvas of as many pixels as it covers, wiped; null while it is not shown.
function pencil(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  if (!width) return null;
  Object.assign(canvas, { width, height: Math.round(canvas.clientHeight * scale) });
  return canvas.getContext("2d");
}
function colors(node) {
  const style = getComputedStyle(node);
  return (name) => style.getPropertyValue(name);
}

// The pitches of a clip: time to the right, pitch upwards, an octave as high as any other. It grows
// as the clip does.
class Spectrum {
  static COLUMNS = 600;
  static ROWS = 96;
  constructor(clip) {
    this.clip = clip;
    this.done = 0; // columns
    this.total = clip.total;
    this.picture = document.createElement("canvas");
    Object.assign(this.picture, { width: Spectrum.COLUMNS, height: Spectrum.ROWS });
    this.pen = this.picture.getContext("2d");
    const size = (this.size = clip.rate > 20000 ? 2048 : 1024);
    const [lowest, highest] = [60, clip.rate / 2];
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
    this.hann = this.real.map((_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.bins = Array.from({ length: Spectrum.ROWS + 1 }, (_, i) => (lowest * (highest / lowest) ** (i / Spectrum.ROWS) * size) / clip.rate);
    this.column = this.pen.createImageData(1, Spectrum.ROWS);
  }
  // The clip has another length or another beginning.
  restart() {
    this.done = 0;
    this.total = this.clip.total;
    this.pen.clearRect(0, 0, Spectrum.COLUMNS, Spectrum.ROWS);
  }
  // With samples as far as there are any.
  grow(data) {
    const { clip } = this;
    if (!data) return;
    if (this.total !== clip.total) this.restart();
    for (; this.done < Spectrum.COLUMNS; this.done++) {
      const start = Math.round(((this.done + 0.5) / Spectrum.COLUMNS) * clip.total - this.size / 2);
      if (!clip.end && start + this.size > clip.frames) return;
      this.draw(data, start);
    }
  }
  draw(data, start) {
    const { clip, real, imaginary, size, bins, column } = this;
    for (let i = 0; i < size; i++) {
      const frame = start + i;
      real[i] = frame < 0 || frame >= clip.frames ? 0 : (this.hann[i] * data[frame * clip.channels]) / 32768;
    }
    imaginary.fill(0);
    fourier(real, imaginary);
    for (let y = 0; y < Spectrum.ROWS; y++) {
      let most = 0;
      const last = Math.min(size / 2 - 1, Math.max(Math.floor(bins[y + 1]), Math.floor(bins[y])));
      for (let k = Math.floor(bins[y]); k <= last; k++) most = Math.max(most, real[k] ** 2 + imaginary[k] ** 2);
      const decibels = 10 * Math.log10(most / (size / 4) ** 2 + 1e-12);
      column.data.set(heat(Math.min(1, Math.max(0, 1 + decibels / 75))), 4 * (Spectrum.ROWS - 1 - y));
    }
    this.pen.putImageData(column, this.done, 0);
  }
}

// In place; the length is a power of two.
function fourier(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j], imaginary[i], imaginary[j]] = [real[j], real[i], imaginary[j], imaginary[i]];
  }
  for (let half = 1; half < size; half *= 2) {
    for (let k = 0; k < half; k++) {
      const [cos, sin] = [Math.cos((-Math.PI * k) / half), Math.sin((-Math.PI * k) / half)];
      for (let i = k; i < size; i += 2 * half) {
        const j = i + half;
        const re = real[j] * cos - imaginary[j] * sin;
        const im = real[j] * sin + imaginary[j] * cos;
        real[j] = real[i] - re;
        imaginary[j] = imaginary[i] - im;
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}

const HEAT = [[20, 15, 38], [66, 32, 118], [150, 48, 140], [236, 104, 104], [255, 196, 120], [255, 246, 220]];
function heat(share) {
  const at = share * (HEAT.length - 1);
  const i = Math.min(HEAT.length - 2, Math.floor(at));
  return [...HEAT[i].map((from, c) => from + (HEAT[i + 1][c] - from) * (at - i)), 255];
}
