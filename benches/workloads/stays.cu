// to[i] = from[i] + 1, of which argument 2 says how many there are, by a kernel that stays.
#include "splitrpc/persistent.cuh"

extern "C" __global__ void step(splitrpc::Doorbell bell) {
  splitrpc::Batches batches(bell);
  while (batches.next()) {
    const unsigned *from = batches.pointer<const unsigned>(0);
    unsigned *to = batches.pointer<unsigned>(1);
    for (unsigned i = batches.thread(); i < batches.word(2); i += batches.threads()) to[i] = from[i] + 1;
    batches.done();
  }
}
