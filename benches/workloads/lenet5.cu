// LeNet-5: two convolutions with mean pooling, then three dense layers, tanh between them.

// A convolution of 5 x 5 with `pad` zeroes around, tanh, and the mean of each 2 x 2. A thread for each element of `out`,
// which has `filters` planes of `side` x `side`. `weights` has for each filter 25 numbers of each channel, then its bias.
extern "C" __global__ void conv_pool(const float* in, const float* weights, float* out, unsigned channels, unsigned in_side,
                                     unsigned pad, unsigned filters, unsigned side)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= filters * side * side)
        return;
    unsigned filter = i / (side * side), y = i / side % side, x = i % side;
    const float* own = weights + filter * (channels * 25 + 1);
    float mean = 0;
    for (int dy = 0; dy < 2; dy++)
        for (int dx = 0; dx < 2; dx++) {
            float sum = own[channels * 25];
            for (unsigned channel = 0; channel < channels; channel++)
                for (int ky = 0; ky < 5; ky++)
                    for (int kx = 0; kx < 5; kx++) {
                        int from_y = int(2 * y) + dy + ky - int(pad), from_x = int(2 * x) + dx + kx - int(pad);
                        bool inside = from_y >= 0 && from_x >= 0 && from_y < int(in_side) && from_x < int(in_side);
                        if (inside)
                            sum += own[channel * 25 + ky * 5 + kx] * in[(channel * in_side + from_y) * in_side + from_x];
                    }
            mean += tanhf(sum) * 0.25f;
        }
    out[i] = mean;
}

// A warp for each of `outputs` sums. `weights` has for each `inputs` numbers, then its bias. tanh unless `linear`.
extern "C" __global__ void dense(const float* in, const float* weights, float* out, unsigned inputs, unsigned outputs,
                                 unsigned linear)
{
    unsigned output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (output >= outputs)
        return;
    const float* own = weights + output * (inputs + 1);
    float sum = 0;
    for (unsigned k = lane; k < inputs; k += 32)
        sum += own[k] * in[k];
    for (unsigned step = 16; step > 0; step /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, step);
    if (lane == 0) {
        sum += own[inputs];
        out[output] = linear ? sum : tanhf(sum);
    }
}
