/* libmoetune: a tuned mixture-of-experts (MoE) layer, called from any program.
 *
 *   out[t] = sum over k of weight[t, k] * expert[ids[t, k]](x[t])
 *   expert[e](v) = w2[e] (silu(w13[e, gate] v) * (w13[e, up] v))
 *
 * A layer handle describes the layer and holds compiled kernels; weights stay the caller's. Five
 * calls: create, prepare, workspace_bytes, run, explain. This header compiles alone as C11 and as
 * C++20.
 *
 * Every call returns a status and never throws or aborts; moetune_last_error() says what was wrong
 * and what to do about it. All calls may be made from several threads at once, with the same handle
 * or others; only moetune_destroy() needs the handle to itself.
 */
#ifndef MOETUNE_H
#define MOETUNE_H

#include <stddef.h>
#include <stdint.h>

#if defined(MOETUNE_STATIC)
#define MOETUNE_API
#else
#define MOETUNE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows by one when a struct of this header gets a field or an enumeration a value; older callers
 * stay served, because each struct begins with its size. */
#define MOETUNE_API_VERSION 1

typedef enum {
  MOETUNE_OK = 0,
  MOETUNE_INVALID_ARGUMENT = 1, /* a null pointer, a size, a pitch, a workspace too small */
  MOETUNE_UNSUPPORTED = 2,      /* no kernel here does this layer, on this GPU */
  MOETUNE_NOT_PREPARED = 3,     /* run: call moetune_prepare() for this token count first */
  MOETUNE_COMPILATION_FAILED = 4,
  MOETUNE_DEVICE_ERROR = 5, /* CUDA's or NVRTC's; the message has their reason */
  MOETUNE_INTERNAL_ERROR = 6
} moetune_status;

/* How weights are stored and multiplied.
 *   BF16        x and weights bfloat16
 *   FP8_BLOCK   weights e4m3 with an fp32 scale for each 128 x 128 block (as DeepSeek-V3's
 *               checkpoints); x is bfloat16 and quantised inside, per 1 x 128
 *   FP8_TENSOR  weights e4m3 with one fp32 scale for each expert's matrix; x per row */
typedef enum {
  MOETUNE_BF16 = 0,
  MOETUNE_FP8_BLOCK = 1,
  MOETUNE_FP8_TENSOR = 2
} moetune_dtype;

typedef enum { MOETUNE_INT32 = 0, MOETUNE_INT64 = 1 } moetune_id_type;
typedef enum { MOETUNE_WEIGHT_FP32 = 0, MOETUNE_WEIGHT_BF16 = 1 } moetune_weight_type;

/* One MoE layer as one GPU sees it. Sizes in elements. */
typedef struct {
  size_t size; /* sizeof(moetune_layer_desc) */
  moetune_dtype dtype;
  int64_t num_experts;       /* E, of this GPU */
  int64_t top_k;             /* K, experts a token; may exceed E where other GPUs hold the rest */
  int64_t hidden_size;       /* H; bf16 a multiple of 8, fp8_block of 128, fp8_tensor of 16 */
  int64_t intermediate_size; /* I, of one expert; likewise */
  int64_t w13_row_pitch;     /* elements from a row to the next; 0: H */
  int64_t w2_row_pitch;      /* 0: I */
} moetune_layer_desc;

typedef struct {
  size_t size;             /* sizeof(moetune_options) */
  int device;              /* CUDA ordinal; -1: the current one */
  const char* table_path;  /* tables, or folders of them, separated by ':', searched in this order
                              before the tables that are built in; NULL: those alone */
  const char* cache_dir;   /* compiled kernels are kept here; NULL: ~/.cache/moe-tune; "": nowhere */
  int num_compile_threads; /* 0: one a core */
} moetune_options;

typedef struct moetune_layer moetune_layer;

/* Makes a handle; `options` may be NULL. Finds the tables, compiles nothing. On failure *layer is
 * NULL. */
MOETUNE_API moetune_status moetune_create(const moetune_layer_desc* desc,
                                          const moetune_options* options, moetune_layer** layer);

/* Waits for nothing: no call with this handle may be in flight, and no graph that captured one may
 * be launched afterwards. NULL is fine. */
MOETUNE_API void moetune_destroy(moetune_layer* layer);

/* Compiles, or loads from the cache, what calls with these numbers of tokens need. `count` 0: what
 * any number of tokens needs. May take seconds; not while a stream of this thread is captured. */
MOETUNE_API moetune_status moetune_prepare(moetune_layer* layer, const int64_t* token_counts,
                                           size_t count);

/* Device memory that moetune_run() needs for calls of up to `max_tokens` tokens, with any pitches
 * and types. Ask after moetune_prepare(), which replaces plans that do not compile. The contents need
 * not be initialised, and nothing is kept in it between calls: calls that do not overlap may share it. */
MOETUNE_API moetune_status moetune_workspace_bytes(const moetune_layer* layer, int64_t max_tokens,
                                                   size_t* bytes);

/* What one call computes on. Pointers are device memory, aligned to 16 bytes; pitches in elements,
 * multiples of 16 bytes. Ids below 0, or at and above the number of experts (after expert_map, where
 * there is one), are another GPU's: they add nothing and cost no matrix work. */
typedef struct {
  size_t size; /* sizeof(moetune_args) */
  int64_t num_tokens; /* T; 0: the call does nothing */

  const void* x;        /* bf16 [T, H] */
  int64_t x_row_pitch;  /* 0: H */
  const void* w13;      /* [E, 2I, H]: rows of the gate projection, then of the up projection */
  const float* w13_scale; /* fp8_block [E, 2I / 128, H / 128], fp8_tensor [E]; else NULL */
  const void* w2;         /* [E, H, I] */
  const float* w2_scale;  /* fp8_block [E, H / 128, I / 128], fp8_tensor [E]; else NULL */

  const void* topk_ids; /* [T, K] */
  moetune_id_type id_type;
  const void* topk_weights; /* [T, K] */
  moetune_weight_type weight_type;
  const int32_t* expert_map; /* [expert_map_size]: this GPU's expert for each of the model's, or -1;
                                NULL: ids are this GPU's */
  int64_t expert_map_size;

  void* out;             /* bf16 [T, H]; must not overlap x */
  int64_t out_row_pitch; /* 0: H */

  void* workspace; /* aligned to 256 bytes */
  size_t workspace_bytes;
} moetune_args;

/* Enqueues one call on `stream` (a cudaStream_t of the layer's device) and returns. Allocates
 * nothing, waits for nothing, compiles nothing; may be captured into a CUDA graph. Calls on different
 * streams may overlap if they have workspaces of their own. MOETUNE_NOT_PREPARED where the kernels
 * for this number of tokens are not loaded. */
MOETUNE_API moetune_status moetune_run(moetune_layer* layer, const moetune_args* args,
                                       void* stream);

/* Which table, which of its entries and which plan a call with `num_tokens` takes, and why others
 * were passed over. `as_json` 0: text for people. *text stays valid until this thread's next call of
 * moetune_explain(). */
MOETUNE_API moetune_status moetune_explain(const moetune_layer* layer, int64_t num_tokens,
                                           int as_json, const char** text);

/* What was wrong with this thread's last call that did not return MOETUNE_OK, in one line; "" before.
 * Valid until this thread's next call. */
MOETUNE_API const char* moetune_last_error(void);

MOETUNE_API const char* moetune_status_name(moetune_status status); /* "MOETUNE_OK", ... */
MOETUNE_API const char* moetune_version(void);                      /* "0.1.0" */

#ifdef __cplusplus
}
#endif

#endif /* MOETUNE_H */
