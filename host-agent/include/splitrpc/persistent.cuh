// What a kernel of `launch = "persistent"` is made with: see "Kernels that stay" in docs/gpu.md. For CUDA C++, by nvcc or NVRTC.
//
//   extern "C" __global__ void add(splitrpc::Doorbell bell) {
//     splitrpc::Batches batches(bell);
//     while (batches.next()) {                         // all threads of all blocks, together
//       const float *a = batches.pointer<const float>(0), *b = batches.pointer<const float>(1);
//       float *c = batches.pointer<float>(2);
//       for (unsigned i = batches.thread(); i < batches.word(3); i += batches.threads()) c[i] = a[i] + b[i];
//       batches.done();                                // all threads of all blocks, together
//     }
//   }
//
// Blocks have 32 threads or more. Tensors are written by others while the kernel is there, so they are not read through `const __restrict__`
// pointers or __ldg, for which a multiprocessor may have old bytes.
#pragma once

namespace splitrpc {

// The kernel's one parameter.
struct Doorbell {
  // Of the host: 32 entries of 16 bytes, which the CPU writes, and at byte 1024 the number of the batch that was done last, which the kernel
  // writes. The first entry is the rows of a batch, the others are the manifest's arguments. An entry is the two halves of a value, the lower
  // one first, each in the lower four bytes of eight, below the number of the batch that it is of.
  unsigned char *page;
  // Of the device, for the kernel's own use, 1024 bytes, which were zeroes before its first launch. Here: the entries once more, for
  // all blocks but the first, and at byte 512 how many of those have done the batch.
  unsigned char *relay;
  // The kernel ends when it has seen no batch for so long.
  unsigned long long limit_ns;
  // The number of the first batch. Each later one has the next number; a number beyond that means that the kernel is to end.
  unsigned first;
  // Arguments of a batch, 31 at most.
  unsigned values;
};

class Batches {
 public:
  __device__ explicit Batches(const Doorbell &bell) : bell_(bell), number_(bell.first - 1) {}

  // Waits for the next batch. False: there is none any more, and the kernel has to return.
  __device__ bool next() {
    number_ += 1;
    __syncthreads();
    if (local() < 32) {
      const bool comes = look();
      if (local() == 0) told()[32] = comes;
    }
    __syncthreads();
    return told()[32] != 0;
  }

  // What the batch has written is there for everybody. The next one may come.
  __device__ void done() {
    __syncthreads();
    if (local() != 0) return;
    const unsigned others = blocks() - 1;
    if (others > 0) {
      unsigned *arrived = reinterpret_cast<unsigned *>(bell_.relay + 512);
      if (block() != 0) {
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        atomicAdd(arrived, 1);
        return;
      }
      // The first block looks for no other batch before all have done this one: they hear of the next, or of the end, from it. Where one
      // of them has left, it leaves too once it is told to.
      for (unsigned turn = 1; *reinterpret_cast<volatile unsigned *>(arrived) != others; turn++) {
        if (turn % 4096 == 0 && told_to_end(number_)) return;
      }
      *reinterpret_cast<volatile unsigned *>(arrived) = 0;
    }
    fence();
    *reinterpret_cast<volatile unsigned *>(bell_.page + 1024) = number_;
  }

  __device__ unsigned rows() const { return static_cast<unsigned>(told()[0]); }
  // The manifest's arguments, counted from 0.
  template <typename T>
  __device__ T *pointer(unsigned argument) const {
    return reinterpret_cast<T *>(told()[1 + argument]);
  }
  __device__ unsigned word(unsigned argument) const { return static_cast<unsigned>(told()[1 + argument]); }
  __device__ float number(unsigned argument) const { return __uint_as_float(word(argument)); }
  __device__ unsigned long long wide(unsigned argument) const { return told()[1 + argument]; }

  // This thread's number among those of all blocks, and how many they are.
  __device__ unsigned thread() const { return block() * block_threads() + local(); }
  __device__ unsigned threads() const { return blocks() * block_threads(); }

 private:
  static __device__ unsigned local() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static __device__ unsigned block() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }
  static __device__ unsigned blocks() { return gridDim.x * gridDim.y * gridDim.z; }
  static __device__ unsigned block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

  // What the block was told: the entries' values, and whether it goes on.
  static __device__ unsigned long long *told() {
    __shared__ unsigned long long values[33];
    return values;
  }

  // What this thread has seen, and the threads behind whose barrier it is, comes before what it does from here on, for everybody.
  static __device__ void fence() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

  static __device__ unsigned long long now() {
    unsigned long long time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
  }

  // Whether the CPU has gone on past a number.
  __device__ bool told_to_end(unsigned number) const {
    unsigned long long low;
    asm volatile("ld.volatile.global.u64 %0, [%1];" : "=l"(low) : "l"(bell_.page) : "memory");
    return static_cast<int>(static_cast<unsigned>(low >> 32) - number) > 0;
  }

  // By one warp: the first block looks at the host's page and tells the others. They do not all look there, which would take each look much longer.
  __device__ bool look() {
    const unsigned lane = local();
    const bool heralds = block() == 0, mine = lane <= bell_.values;
    unsigned char *from = (heralds ? bell_.page : bell_.relay) + 16 * lane;
    unsigned char *relay = bell_.relay + 16 * lane;
    const bool relays = blocks() > 1;
    unsigned long long low = 0, high = 0;
    const unsigned long long since = now();
    for (unsigned turn = 1;; turn++) {
      if (mine) asm volatile("ld.volatile.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(from) : "memory");
      const unsigned of_low = static_cast<unsigned>(low >> 32), of_high = static_cast<unsigned>(high >> 32);
      const bool later = static_cast<int>(of_low - number_) > 0 || static_cast<int>(of_high - number_) > 0;
      bool ends = __shfl_sync(0xffffffffu, later, 0);
      if (!ends && __all_sync(0xffffffffu, !mine || (of_low == number_ && of_high == number_))) break;
      if (heralds && !ends) ends = __shfl_sync(0xffffffffu, now() - since > bell_.limit_ns, 0);
      // In case that the first block has left without a word.
      if (!heralds && !ends && turn % 4096 == 0) ends = __shfl_sync(0xffffffffu, told_to_end(number_), 0);
      if (ends) {
        if (heralds && relays && lane == 0) {
          const unsigned long long end = static_cast<unsigned long long>(number_ + 1) << 32;
          asm volatile("st.volatile.global.v2.u64 [%0], {%1, %2};" ::"l"(relay), "l"(end), "l"(end) : "memory");
        }
        return false;
      }
    }
    // What others wrote before they told of it can be seen from here on, by all threads of the block behind the barrier.
    fence();
    if (heralds && relays && mine) {
      asm volatile("st.volatile.global.v2.u64 [%0], {%1, %2};" ::"l"(relay), "l"(low), "l"(high) : "memory");
    }
    if (mine) told()[lane] = (low & 0xffffffffull) | high << 32;
    return true;
  }

  const Doorbell bell_;
  unsigned number_;
};

}  // namespace splitrpc
