// c = a b for square matrices of n rows, n a multiple of 16: a block of 16 x 16 threads for a tile of as many elements.
extern "C" __global__ void matmul(const float* a, const float* b, float* c, unsigned n)
{
    __shared__ float left[16][17], right[16][17];
    unsigned x = threadIdx.x, y = threadIdx.y;
    unsigned row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (unsigned tile = 0; tile < n; tile += 16) {
        left[y][x] = a[row * n + tile + x];
        right[y][x] = b[(tile + y) * n + column];
        __syncthreads();
        for (unsigned k = 0; k < 16; k++)
            sum += left[y][k] * right[k][x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}
