// Adds up rows of vectors of four numbers: thread t of a row's sums adds those whose number is t modulo how many sums there are.
#include "splitrpc/persistent.cuh"

__device__ void fold_one(const uint4 *in, unsigned *out, unsigned vectors, unsigned sums, unsigned index) {
  const uint4 *row = in + (unsigned long long)(index / sums) * vectors;
  unsigned sum = 0;
  for (unsigned at = index % sums; at < vectors; at += sums) {
    uint4 v = row[at];
    sum += v.x + v.y + v.z + v.w;
  }
  out[index] = sum;
}

// One thread for each sum of each row.
extern "C" __global__ void fold(const uint4 *in, unsigned *out, unsigned vectors, unsigned sums) {
  fold_one(in, out, vectors, sums, blockIdx.x * blockDim.x + threadIdx.x);
}

// The same of as many rows as come, by a kernel that stays.
extern "C" __global__ void fold_stays(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const unsigned sums = batches.word(3);
    for (unsigned index = batches.thread(); index < batches.rows() * sums; index += batches.threads())
      fold_one(batches.pointer<const uint4>(0), batches.pointer<unsigned>(1), batches.word(2), sums, index);
    batches.done();
  }
}
