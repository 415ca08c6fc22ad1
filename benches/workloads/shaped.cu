// No networks: kernels that read all that a network of that name takes, and write as much as it gives, by formulas whose
// results are the same to the bit wherever they are computed. Halves and quarters are exact, so that each element is
// rounded once.

// out[j] = in[j mod n] + in[(7 j + 3) mod n] / 2, for m numbers.
extern "C" __global__ void blend(const float* in, float* out, unsigned n, unsigned m)
{
    unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j < m)
        out[j] = in[j % n] + 0.5f * in[(7 * j + 3) % n];
}

// Scores of `classes` classes for each of n pixels, whose red, green and blue are planes of `in`: a plane for each class,
// from another colour and another pixel each. scores = near + far / 2, auxiliary = far - near / 4, and the label of a pixel
// is the first class of the highest score.
extern "C" __global__ void classes(const float* in, float* scores, float* auxiliary, int* labels, unsigned n, unsigned classes)
{
    unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= n)
        return;
    float best = 0;
    int label = 0;
    for (unsigned c = 0; c < classes; c++) {
        float near = in[c % 3 * n + pixel];
        float far = in[(c + 1) % 3 * n + (pixel + 1009 * c) % n];
        float score = near + 0.5f * far;
        scores[c * n + pixel] = score;
        auxiliary[c * n + pixel] = far - 0.25f * near;
        if (c == 0 || score > best) {
            best = score;
            label = c;
        }
    }
    labels[pixel] = label;
}

// `width` numbers for each token: 0 where it is masked, else ((31 id + 17 column + 7 place + 5 type) mod 251) / 256.
extern "C" __global__ void embed(const long long* ids, const long long* mask, const long long* types, float* out,
                                 unsigned tokens, unsigned width)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tokens * width)
        return;
    unsigned place = i / width, column = i % width;
    long long hash = 31 * ids[place] + 17 * column + 7 * place + 5 * types[place];
    out[i] = mask[place] == 0 ? 0.0f : float(hash % 251) / 256.0f;
}
