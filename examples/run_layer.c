/* Runs one MoE layer of random weights through libmoetune and compares every value with a layer
 * computed here. Build: cc run_layer.c $(pkg-config --cflags --libs moetune) -lcudart -lm */
#include <cuda_runtime_api.h>
#include <math.h>
#include <moetune.h>
#include <stdio.h>
#include <stdlib.h>
enum { E = 8, K = 2, H = 256, I = 384, T = 5, W13 = E * 2 * I * H, W2 = E * H * I };
static float x[T * H], w13[W13], w2[W2], weights[T * K];
static int32_t ids[T * K];
static uint16_t out[T * H];
#define MUST(call) if (call) return fprintf(stderr, "%s: %s\n", #call, moetune_last_error()), 1

typedef union { uint32_t bits; float value; } word;
static float from_bf16(uint16_t half) { return ((word){.bits = (uint32_t)half << 16}).value; }
static void* to_device(const void* host, size_t bytes) {
  void* device = NULL;
  if (cudaMalloc(&device, bytes) || (host && cudaMemcpy(device, host, bytes, cudaMemcpyDefault))) exit(2);
  return device;
}
static void* random_bf16(float* values, int count, float scale) { /* kept in `values` too */
  uint16_t* const halves = malloc(2 * (size_t)count);
  for (int i = 0; i < count; ++i) {
    const word random = {.value = scale * ((float)rand() / (float)RAND_MAX - 0.5f)};
    values[i] = from_bf16(halves[i] = (uint16_t)(random.bits >> 16));
  }
  return to_device(halves, 2 * (size_t)count);
}
static double dot(const float* a, const float* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += (double)a[i] * b[i];
  return sum;
}
int main(void) {
  for (int i = 0; i < T * K; ++i) ids[i] = (5 * i + 3 * (i / K)) % E, weights[i] = i % K ? 0.25f : 0.75f;
  moetune_layer_desc desc = {.size = sizeof desc, .num_experts = E, .top_k = K, .hidden_size = H, .intermediate_size = I};
  moetune_args args = {.size = sizeof args, .num_tokens = T, .x = random_bf16(x, T * H, 2), .w13 = random_bf16(w13, W13, 0.2f),
    .w2 = random_bf16(w2, W2, 0.2f), .topk_ids = to_device(ids, sizeof ids), .topk_weights = to_device(weights, sizeof weights)};
  moetune_layer* layer;
  MUST(moetune_create(&desc, NULL, &layer) || moetune_prepare(layer, &args.num_tokens, 1));
  MUST(moetune_workspace_bytes(layer, T, &args.workspace_bytes));
  args.workspace = to_device(NULL, args.workspace_bytes), args.out = to_device(NULL, sizeof out);
  MUST(moetune_run(layer, &args, NULL) || cudaMemcpy(out, args.out, sizeof out, cudaMemcpyDefault));
  moetune_destroy(layer);
  for (int t = 0; t < T; ++t) {
    double want[H] = {0}, error = 0, size = 0;
    for (int k = t * K; k < (t + 1) * K; ++k) {
      const float *gate = w13 + ids[k] * 2 * I * H, *up = gate + I * H, *down = w2 + ids[k] * H * I;
      float hidden[I];
      for (int i = 0; i < I; ++i) {
        const double g = dot(gate + i * H, x + t * H, H);
        hidden[i] = (float)(g / (1 + exp(-g)) * dot(up + i * H, x + t * H, H));
      }
      for (int h = 0; h < H; ++h) want[h] += weights[k] * dot(down + h * I, hidden, I);
    }
    for (int h = 0; h < H; ++h) error += pow(from_bf16(out[t * H + h]) - want[h], 2), size += want[h] * want[h];
    if (!(sqrt(error / size) < 0.01)) return printf("token %d is wrong by %g\n", t, sqrt(error / size)), 1;
  }
  return printf("right: %d tokens\n", T) < 0;
}
