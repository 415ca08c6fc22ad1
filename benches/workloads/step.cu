// to[i] = from[i] + 1, for n numbers.
extern "C" __global__ void step(const unsigned *from, unsigned *to, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i] + 1;
}
