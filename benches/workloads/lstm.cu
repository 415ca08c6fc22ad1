// One step of an LSTM of 256 units over 128 features: a block of 4 warps for each unit, a warp for each of its gates (input,
// forget, cell, output).

#define FEATURES 128
#define UNITS 256

__device__ float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

// `weights` has for each unit and gate the numbers of the features, of the units before, and the bias. `first` says that
// there is nothing before; the memory for that may hold what another sequence left.
extern "C" __global__ void lstm_step(const float* sequence, const float* weights, const float* before, float* cells,
                                     float* after, unsigned step, unsigned first)
{
    __shared__ float gates[4];
    unsigned unit = blockIdx.x, gate = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* own = weights + (unit * 4 + gate) * (FEATURES + UNITS + 1);
    const float* features = sequence + step * FEATURES;
    float sum = 0;
    for (unsigned k = lane; k < FEATURES; k += 32)
        sum += own[k] * features[k];
    if (!first)
        for (unsigned k = lane; k < UNITS; k += 32)
            sum += own[FEATURES + k] * before[k];
    for (unsigned part = 16; part > 0; part /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, part);
    if (lane == 0)
        gates[gate] = sum + own[FEATURES + UNITS];
    __syncthreads();
    if (threadIdx.x == 0) {
        float cell = sigmoid(gates[0]) * tanhf(gates[2]);
        if (!first)
            cell += sigmoid(gates[1]) * cells[unit];
        cells[unit] = cell;
        after[unit] = sigmoid(gates[3]) * tanhf(cell);
    }
}
