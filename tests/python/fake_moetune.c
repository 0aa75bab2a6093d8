/* A libmoetune.so for tests without a GPU: the interface of moetune.h over the host's memory.
 *
 * It computes the bf16 layer for real, slowly, so that a wrong pointer, pitch or type shows in the
 * result; it records the last call; and it can be told to fail. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/moetune.h"

#define FAKE __attribute__((visibility("default")))
enum { MAX_COUNTS = 4096 };

struct moetune_layer {
  moetune_layer_desc desc;
  int64_t prepared[MAX_COUNTS];
  size_t num_prepared;
  int all;
};

/* What tests read and set, by name. */
FAKE moetune_args fake_last_args;
FAKE moetune_layer_desc fake_last_desc;
FAKE int fake_device, fake_num_creates, fake_num_runs, fake_num_prepares;
FAKE char fake_table_path[256], fake_cache_dir[256];
FAKE int fake_fail_create, fake_fail_run; /* the status to give, at each call */
FAKE int fake_needs_prepare;              /* whether a token count must have been prepared */
static _Thread_local char last_error[256];
static _Thread_local char explained[256];

static moetune_status fail(moetune_status status, const char* why) {
  snprintf(last_error, sizeof last_error, "%s", why);
  return status;
}
static float from_bf16(uint16_t v) {
  uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

moetune_status moetune_create(const moetune_layer_desc* desc, const moetune_options* options,
                              moetune_layer** layer) {
  *layer = NULL;
  ++fake_num_creates;
  fake_last_desc = *desc;
  fake_device = options ? options->device : -1;
  snprintf(fake_table_path, sizeof fake_table_path, "%s",
           options && options->table_path ? options->table_path : "(null)");
  snprintf(fake_cache_dir, sizeof fake_cache_dir, "%s",
           options && options->cache_dir ? options->cache_dir : "(null)");
  if (fake_fail_create) return fail((moetune_status)fake_fail_create, "told to refuse the layer");
  if (desc->size != sizeof *desc) return fail(MOETUNE_INVALID_ARGUMENT, "desc.size");
  *layer = calloc(1, sizeof **layer);
  (*layer)->desc = *desc;
  return MOETUNE_OK;
}
void moetune_destroy(moetune_layer* layer) { free(layer); }

moetune_status moetune_prepare(moetune_layer* layer, const int64_t* counts, size_t count) {
  ++fake_num_prepares;
  if (count == 0) layer->all = 1;
  for (size_t i = 0; i < count && layer->num_prepared < MAX_COUNTS; ++i)
    layer->prepared[layer->num_prepared++] = counts[i];
  return MOETUNE_OK;
}
moetune_status moetune_workspace_bytes(const moetune_layer* layer, int64_t max_tokens, size_t* bytes) {
  *bytes = (size_t)(max_tokens * layer->desc.top_k * layer->desc.intermediate_size) * sizeof(float);
  return MOETUNE_OK;
}

moetune_status moetune_run(moetune_layer* layer, const moetune_args* args, void* stream) {
  (void)stream;
  ++fake_num_runs;
  fake_last_args = *args;
  if (fake_fail_run) return fail((moetune_status)fake_fail_run, "told to refuse the call");
  if (args->size != sizeof *args) return fail(MOETUNE_INVALID_ARGUMENT, "args.size");
  int known = layer->all || !fake_needs_prepare;
  for (size_t i = 0; i < layer->num_prepared; ++i) known |= layer->prepared[i] == args->num_tokens;
  if (!known) return fail(MOETUNE_NOT_PREPARED, "this number of tokens was not prepared");
  const int64_t E = layer->desc.num_experts, K = layer->desc.top_k, H = layer->desc.hidden_size;
  const int64_t I = layer->desc.intermediate_size;
  const int64_t p13 = layer->desc.w13_row_pitch ? layer->desc.w13_row_pitch : H;
  const int64_t p2 = layer->desc.w2_row_pitch ? layer->desc.w2_row_pitch : I;
  const int64_t px = args->x_row_pitch ? args->x_row_pitch : H;
  const int64_t po = args->out_row_pitch ? args->out_row_pitch : H;
  size_t need;
  moetune_workspace_bytes(layer, args->num_tokens, &need);
  if (args->workspace_bytes < need) return fail(MOETUNE_INVALID_ARGUMENT, "workspace too small");
  if (layer->desc.dtype != MOETUNE_BF16) return MOETUNE_OK; /* recorded only */
  float* act = args->workspace;
  for (int64_t t = 0; t < args->num_tokens; ++t) {
    const uint16_t* x = (const uint16_t*)args->x + t * px;
    float* sum = calloc((size_t)H, sizeof(float));
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = t * K + k;
      int64_t e = args->id_type == MOETUNE_INT64 ? ((const int64_t*)args->topk_ids)[at]
                                                 : ((const int32_t*)args->topk_ids)[at];
      if (args->expert_map) e = e < 0 || e >= args->expert_map_size ? -1 : args->expert_map[e];
      if (e < 0 || e >= E) continue;
      const float w = args->weight_type == MOETUNE_WEIGHT_BF16
                          ? from_bf16(((const uint16_t*)args->topk_weights)[at])
                          : ((const float*)args->topk_weights)[at];
      const uint16_t* w13 = (const uint16_t*)args->w13 + e * 2 * I * p13;
      const uint16_t* w2 = (const uint16_t*)args->w2 + e * H * p2;
      for (int64_t i = 0; i < I; ++i) {
        float gate = 0, up = 0;
        for (int64_t h = 0; h < H; ++h) {
          gate += from_bf16(x[h]) * from_bf16(w13[i * p13 + h]);
          up += from_bf16(x[h]) * from_bf16(w13[(I + i) * p13 + h]);
        }
        act[i] = from_bf16(to_bf16(gate / (1 + expf(-gate)) * up));
      }
      for (int64_t h = 0; h < H; ++h) {
        float value = 0;
        for (int64_t i = 0; i < I; ++i) value += act[i] * from_bf16(w2[h * p2 + i]);
        sum[h] += w * value;
      }
    }
    for (int64_t h = 0; h < H; ++h) ((uint16_t*)args->out)[t * po + h] = to_bf16(sum[h]);
    free(sum);
  }
  return MOETUNE_OK;
}

moetune_status moetune_explain(const moetune_layer* layer, int64_t num_tokens, int as_json,
                               const char** text) {
  snprintf(explained, sizeof explained,
           as_json ? "{\"num_tokens\": %lld, \"hidden_size\": %lld}" : "%lld tokens, hidden size %lld",
           (long long)num_tokens, (long long)layer->desc.hidden_size);
  *text = explained;
  return MOETUNE_OK;
}
const char* moetune_last_error(void) { return last_error; }
const char* moetune_status_name(moetune_status status) {
  (void)status;
  return "MOETUNE_STATUS";
}
const char* moetune_version(void) { return "0.1.0"; }
