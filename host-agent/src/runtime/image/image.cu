// Images of 8 bits a channel, row by row with three channels a pixel, resized and normalised into planes of floating point.
//
// Bilinear, with the centres of pixels at halves and edges that go on as they are. One thread makes one pixel of the target; the blocks of
// z are the images of a batch.

typedef unsigned short half_bits;

__device__ void store(float *to, float value) { *to = value; }
__device__ void store(half_bits *to, float value) {
  half_bits bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  *to = bits;
}

template <typename T>
__device__ void resize(const unsigned char *from, T *to, unsigned from_h, unsigned from_w, unsigned h, unsigned w,
                       const float *scale, const float *shift) {
  unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= w || y >= h) return;
  from += (unsigned long long)blockIdx.z * from_h * from_w * 3;
  to += (unsigned long long)blockIdx.z * h * w * 3;
  float fx = fmaxf((x + 0.5f) * ((float)from_w / w) - 0.5f, 0.0f);
  float fy = fmaxf((y + 0.5f) * ((float)from_h / h) - 0.5f, 0.0f);
  unsigned x0 = min((unsigned)fx, from_w - 1), y0 = min((unsigned)fy, from_h - 1);
  unsigned x1 = min(x0 + 1, from_w - 1), y1 = min(y0 + 1, from_h - 1);
  float ax = fx - x0, ay = fy - y0;
  const unsigned char *above = from + (unsigned long long)y0 * from_w * 3, *below = from + (unsigned long long)y1 * from_w * 3;
  for (unsigned c = 0; c < 3; c++) {
    float top = above[x0 * 3 + c] * (1 - ax) + above[x1 * 3 + c] * ax;
    float bottom = below[x0 * 3 + c] * (1 - ax) + below[x1 * 3 + c] * ax;
    float value = top * (1 - ay) + bottom * ay;
    store(to + ((unsigned long long)c * h + y) * w + x, value * scale[c] + shift[c]);
  }
}

#define ENTRY(name, type)                                                                                            \
  extern "C" __global__ void name(const unsigned char *from, type *to, unsigned from_h, unsigned from_w, unsigned h, \
                                  unsigned w, float s0, float s1, float s2, float t0, float t1, float t2) {          \
    float scale[3] = {s0, s1, s2}, shift[3] = {t0, t1, t2};                                                          \
    resize(from, to, from_h, from_w, h, w, scale, shift);                                                            \
  }

ENTRY(image_fp32, float)
ENTRY(image_fp16, half_bits)
