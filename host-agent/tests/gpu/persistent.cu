// Kernels that stay, for tests.
#include "splitrpc/persistent.cuh"

// c = a + b, of which argument 3 says how many there are.
extern "C" __global__ void add(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const float *a = batches.pointer<const float>(0), *b = batches.pointer<const float>(1);
    float *c = batches.pointer<float>(2);
    for (unsigned i = batches.thread(); i < batches.word(3); i += batches.threads()) c[i] = a[i] + b[i];
    batches.done();
  }
}

// Each row's sum and its place in the batch, as so many tenths as argument 2 says: of rows of four.
extern "C" __global__ void rows(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const float *in = batches.pointer<const float>(0);
    float *out = batches.pointer<float>(1);
    for (unsigned row = batches.thread(); row < batches.rows(); row += batches.threads()) {
      float sum = 0;
      for (unsigned i = 0; i < 4; i++) sum += in[4 * row + i];
      out[row] = sum + batches.number(2);
    }
    batches.done();
  }
}

// Waits for as many microseconds as it is given, and answers with that; with a negative number it writes where there is no memory.
extern "C" __global__ void pause(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const int micros = *batches.pointer<const int>(0);
    int *out = micros < 0 ? reinterpret_cast<int *>(16) : batches.pointer<int>(1);
    unsigned long long begun, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begun));
    do {
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (micros > 0 && now - begun < micros * 1000ull);
    if (batches.thread() == 0) *out = micros;
    batches.done();
  }
}

// Doubles a number, but all blocks but one leave in the middle of it where that is 7, and the first one where it is 8.
extern "C" __global__ void parts(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const int number = *batches.pointer<const int>(0);
    if (number == 7 && blockIdx.x > 0) return;
    if (number == 8 && blockIdx.x == 0) return;
    if (batches.thread() == 0) *batches.pointer<int>(1) = number * 2;
    batches.done();
  }
}

// Returns without having waited for anything.
extern "C" __global__ void leaves(splitrpc::Doorbell bell) {}

// Returns so when it is launched for the first time, of which each block keeps note where the relay has room. Later it doubles a number.
extern "C" __global__ void shy(splitrpc::Doorbell bell) {
  unsigned *launches = reinterpret_cast<unsigned *>(bell.relay + 768) + blockIdx.x;
  const bool first = *launches == 0;
  __syncthreads();
  if (first) {
    *launches = 1;
    return;
  }
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    if (batches.thread() == 0) *batches.pointer<int>(1) = *batches.pointer<const int>(0) * 2;
    batches.done();
  }
}
