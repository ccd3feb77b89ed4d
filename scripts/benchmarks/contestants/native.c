/* Plain SGD for a perceptron with ReLU between its layers, as one would write it in C.

   What is trained is known when this is compiled: SIZES (of the inputs, the hidden layers and the
   outputs, with commas), DEPTH (layers), WIDEST (of SIZES), BATCH (samples per update), CLASSES (1:
   cross-entropy; 0: mean squared error). */

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int sizes[] = {SIZES};
static float a[DEPTH + 1][WIDEST], d[DEPTH + 1][WIDEST];
static float gw[DEPTH][WIDEST * WIDEST], gb[DEPTH][WIDEST];

/* w[l] is [out][in], b[l] [out]; x is [n][inputs]; y is [n][outputs], or [n] classes. Each epoch has
   a new order (Fisher and Yates) unless shuffle is 0. A gradient is summed up over its batch. */
void train(float **restrict w, float **restrict b, const float *restrict x,
           const float *restrict y, int n, int shuffle, float lr, int epochs,
           unsigned long long seed)
{
    const int outputs = sizes[DEPTH];
    int *order = malloc(n * sizeof(int));
    for (int i = 0; i < n; i++) order[i] = i;
    for (int e = 0; e < epochs; e++) {
        for (int i = n - 1; shuffle && i > 0; i--) {
            seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
            const int j = (int)(((seed >> 32) * (unsigned long long)(i + 1)) >> 32), t = order[i];
            order[i] = order[j]; order[j] = t;
        }
        for (int start = 0; start < n; start += BATCH) {
            const int stop = start + BATCH < n ? start + BATCH : n;
            const float share = 1.0f / (float)(stop - start);
            for (int s = start; s < stop; s++) {
                const int i = order[s];
                memcpy(a[0], x + (size_t)i * sizes[0], sizes[0] * sizeof(float));
#pragma GCC unroll 8
                for (int l = 0; l < DEPTH; l++) {
                    for (int o = 0; o < sizes[l + 1]; o++) {
                        const float *row = w[l] + (size_t)o * sizes[l];
                        float sum = b[l][o];
                        for (int k = 0; k < sizes[l]; k++) sum += row[k] * a[l][k];
                        a[l + 1][o] = l + 1 < DEPTH && sum < 0 ? 0 : sum;
                    }
                }
                if (CLASSES) {
                    float top = a[DEPTH][0], total = 0;
                    for (int o = 1; o < outputs; o++) top = fmaxf(top, a[DEPTH][o]);
                    for (int o = 0; o < outputs; o++) total += d[DEPTH][o] = expf(a[DEPTH][o] - top);
                    for (int o = 0; o < outputs; o++)
                        d[DEPTH][o] = share * (d[DEPTH][o] / total - (o == (int)y[i]));
                } else {
                    for (int o = 0; o < outputs; o++)
                        d[DEPTH][o] = share * 2.0f / outputs
                                      * (a[DEPTH][o] - y[(size_t)i * outputs + o]);
                }
#pragma GCC unroll 8
                for (int l = DEPTH - 1; l >= 0; l--) {
                    memset(d[l], 0, sizes[l] * sizeof(float));
                    for (int o = 0; o < sizes[l + 1]; o++) {
                        const float g = d[l + 1][o];
                        float *row = w[l] + (size_t)o * sizes[l];
                        for (int k = 0; l && k < sizes[l]; k++) d[l][k] += g * row[k];
                        if (BATCH == 1) { /* nothing to wait for */
                            for (int k = 0; k < sizes[l]; k++) row[k] -= lr * g * a[l][k];
                            b[l][o] -= lr * g;
                        } else {
                            float *grow = gw[l] + (size_t)o * sizes[l];
                            for (int k = 0; k < sizes[l]; k++) grow[k] += g * a[l][k];
                            gb[l][o] += g;
                        }
                    }
                    for (int k = 0; l && k < sizes[l]; k++)
                        d[l][k] = a[l][k] > 0 ? d[l][k] : 0;
                }
            }
            for (int l = 0; BATCH > 1 && l < DEPTH; l++) {
                const int count = sizes[l] * sizes[l + 1];
                for (int k = 0; k < count; k++) { w[l][k] -= lr * gw[l][k]; gw[l][k] = 0; }
                for (int o = 0; o < sizes[l + 1]; o++) { b[l][o] -= lr * gb[l][o]; gb[l][o] = 0; }
            }
        }
    }
    free(order);
}
