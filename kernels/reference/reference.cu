// The judge: slow, obvious, fp32. Shares no code with the kernels it judges, formats included.
// Every token-choice slot is handled by its own expert id; there is no sort, no permutation.
namespace moetune_reference {

typedef unsigned char u8;
typedef unsigned short u16;
typedef long long i64;

// How a matrix is stored. scale(row, column) lies by row blocks, or by column blocks that are
// scale_pitch apart.
enum class Format : int { fp32, bf16, e4m3 };

__device__ float from_bf16(u16 bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// e4m3fn by definition: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f is NaN.
__device__ float from_e4m3(u8 bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return __uint_as_float(0x7fc00000u);
  const float magnitude =
      exponent == 0 ? mantissa * 0.001953125f : ldexpf(8 + mantissa, exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

// Nearest e4m3 value (ties to even mantissa), saturating, as a byte: by the spacing of its binade.
__device__ u8 to_e4m3(float value) {
  const u8 sign = value < 0 ? 0x80 : 0;
  const float magnitude = fminf(fabsf(value), 448.0f);
  int exponent = magnitude > 0 ? ilogbf(magnitude) : -6;
  if (exponent < -6) exponent = -6;
  int steps =
      static_cast<int>(rintf(ldexpf(magnitude, 3 - exponent)));  // in units of 2^(exponent-3)
  if (steps == 16) {
    steps = 8;
    ++exponent;
  }
  if (steps < 8) return sign | static_cast<u8>(steps);  // subnormal: exponent is -6
  return sign | static_cast<u8>((exponent + 7) << 3 | (steps - 8));
}

struct Matrix {
  const void* data;     // row-major
  const float* scales;  // e4m3 only
  int format;
  int row_block, column_block;  // elements a scale covers
  i64 scale_pitch;              // 0: scales lie by rows
};

__device__ float element(const Matrix& m, i64 row, i64 column, i64 columns) {
  const i64 i = row * columns + column;
  if (m.format == static_cast<int>(Format::fp32)) return static_cast<const float*>(m.data)[i];
  if (m.format == static_cast<int>(Format::bf16)) {
    return from_bf16(static_cast<const u16*>(m.data)[i]);
  }
  const i64 a_row = (columns + m.column_block - 1) / m.column_block;
  const i64 scale = m.scale_pitch == 0
                        ? row / m.row_block * a_row + column / m.column_block
                        : column / m.column_block * m.scale_pitch + row / m.row_block;
  return from_e4m3(static_cast<const u8*>(m.data)[i]) * m.scales[scale];
}

// Lists the slots of each expert in increasing order: one thread an expert reads all ids.
__global__ void reference_group(const int* topk_ids, int num_slots, int num_experts,
                                int* slots /* [num_experts, num_slots / top_k] */, int* counts,
                                int capacity) {
  const int expert = blockIdx.x * blockDim.x + threadIdx.x;
  if (expert >= num_experts) return;
  int count = 0;
  for (int slot = 0; slot < num_slots; ++slot) {
    if (topk_ids[slot] == expert) slots[static_cast<i64>(expert) * capacity + count++] = slot;
  }
  counts[expert] = count;
}

// out[slot, n] = sum_k a[slot / top_k, k] * w[expert, n, k] in fp32: a plain 64x64 tile of FMAs.
__global__ void __launch_bounds__(256)
    reference_gemm(Matrix a, Matrix w, const int* slots, const int* counts, int capacity, int top_k,
                   int size_n, int size_k, float* out) {
  const int expert = blockIdx.y;
  const int row0 = blockIdx.z * 64;
  const int column0 = blockIdx.x * 64;
  if (row0 >= counts[expert]) return;
  __shared__ float a_tile[16][65];
  __shared__ float w_tile[16][65];
  const int tx = threadIdx.x % 16;
  const int ty = threadIdx.x / 16;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < size_k; k0 += 16) {
    for (int i = threadIdx.x; i < 64 * 16; i += 256) {
      const int r = i / 16;
      const int k = i % 16;
      const bool in_k = k0 + k < size_k;
      const int row = row0 + r;
      a_tile[k][r] = 0;
      if (in_k && row < counts[expert]) {
        const int slot = slots[static_cast<i64>(expert) * capacity + row];
        a_tile[k][r] = element(a, slot / top_k, k0 + k, size_k);
      }
      w_tile[k][r] = 0;
      if (in_k && column0 + r < size_n) {
        w_tile[k][r] = element(w, static_cast<i64>(expert) * size_n + column0 + r, k0 + k, size_k);
      }
    }
    __syncthreads();
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
          sum[i][j] += a_tile[k][ty + 16 * i] * w_tile[k][tx + 16 * j];
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    const int row = row0 + ty + 16 * i;
    if (row >= counts[expert]) continue;
    const int slot = slots[static_cast<i64>(expert) * capacity + row];
    for (int j = 0; j < 4; ++j) {
      const int column = column0 + tx + 16 * j;
      if (column < size_n) out[static_cast<i64>(slot) * size_n + column] = sum[i][j];
    }
  }
}

// out[slot, i] = silu(gate) * up of gate_up[slot, 2 * columns].
__global__ void reference_swiglu(const float* gate_up, int columns, i64 count, float* out) {
  const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const i64 slot = i / columns;
  const i64 column = i % columns;
  const float gate = gate_up[slot * 2 * columns + column];
  const float up = gate_up[slot * 2 * columns + columns + column];
  out[i] = gate / (1.0f + expf(-gate)) * up;
}

// e4m3 with one scale per block_rows x block_columns block: amax / 448, or 1 for a block of zeros.
// One thread block a scale. The last column block may be short; rows divide evenly.
__global__ void __launch_bounds__(256)
    reference_quantise(const void* in, int in_format, i64 columns, int block_rows,
                       int block_columns, u8* out, float* scales) {
  __shared__ float maxima[256];
  const i64 blocks_a_row = (columns + block_columns - 1) / block_columns;
  const i64 row0 = blockIdx.x / blocks_a_row * block_rows;
  const i64 column0 = blockIdx.x % blocks_a_row * block_columns;
  const i64 width = columns - column0 < block_columns ? columns - column0 : block_columns;
  const Matrix source = {in, nullptr, in_format, 1, 1, 0};
  float amax = 0;
  for (i64 i = threadIdx.x; i < block_rows * width; i += 256) {
    amax = fmaxf(amax, fabsf(element(source, row0 + i / width, column0 + i % width, columns)));
  }
  maxima[threadIdx.x] = amax;
  __syncthreads();
  for (int i = 0; i < 256; ++i) amax = fmaxf(amax, maxima[i]);
  const float scale = amax > 0 ? amax / 448.0f : 1.0f;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  for (i64 i = threadIdx.x; i < block_rows * width; i += 256) {
    const i64 row = row0 + i / width;
    const i64 column = column0 + i % width;
    out[row * columns + column] = to_e4m3(element(source, row, column, columns) / scale);
  }
}

// A matrix of any format as fp32, or rounded to bf16 (nearest even).
__global__ void reference_convert(Matrix in, i64 columns, i64 count, float* out, u16* out_bf16) {
  const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float value = element(in, i / columns, i % columns, columns);
  if (out != nullptr) out[i] = value;
  const unsigned raw = __float_as_uint(value);
  if (out_bf16 != nullptr) out_bf16[i] = static_cast<u16>((raw + 0x7fffu + (raw >> 16 & 1)) >> 16);
}

// out[t] = sum_k weight[t, k] * y[t * top_k + k].
__global__ void reference_combine(const float* y, const float* topk_weights, int top_k, int columns,
                                  i64 count, float* out) {
  const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const i64 token = i / columns;
  float sum = 0;
  for (int k = 0; k < top_k; ++k) {
    sum += topk_weights[token * top_k + k] * y[(token * top_k + k) * columns + i % columns];
  }
  out[i] = sum;
}

// out[positions[row], :] = in[row, :], by bytes: rows in the order in which they are packed.
__global__ void reference_pack(const u8* in, const int* positions, i64 row_bytes, u8* out) {
  const i64 row = blockIdx.x;
  for (i64 i = threadIdx.x; i < row_bytes; i += blockDim.x) {
    out[positions[row] * row_bytes + i] = in[row * row_bytes + i];
  }
}

// The same for scales, one of `groups` in a row, which come to lie by groups, `pitch` apart.
__global__ void reference_pack_scales(const float* in, const int* positions, int groups, i64 pitch,
                                      float* out) {
  const i64 row = blockIdx.x;
  for (int g = threadIdx.x; g < groups; g += blockDim.x) {
    out[g * pitch + positions[row]] = in[row * groups + g];
  }
}

// Fills with normal numbers: Box-Muller over a counter-based hash (splitmix64's finaliser), so that
// element i of stream `seed` is the same on every GPU.
__device__ unsigned long long mix(unsigned long long z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}
__global__ void fill_normal_bf16(u16* out, i64 count, float deviation, unsigned long long seed) {
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const unsigned long long bits =
        mix(mix(seed) + static_cast<unsigned long long>(i) * 0x9e3779b97f4a7c15ull);
    const float u = (static_cast<unsigned>(bits) + 1.0f) * 2.3283064e-10f;
    const float v = static_cast<unsigned>(bits >> 32) * 2.3283064e-10f;
    const float normal = sqrtf(-2.0f * __logf(fminf(u, 1.0f))) * __cosf(6.2831853f * v);
    const unsigned raw = __float_as_uint(normal * deviation);
    out[i] = static_cast<u16>((raw + 0x7fffu + (raw >> 16 & 1)) >> 16);
  }
}

// Compares `got` (a matrix of any format) with `want` (fp32), row by row: one thread block a row.
// Row r of `want` is row positions[r] of `got`, or r where there are no positions.
// result[0] += sum (got - want)^2, result[1] += sum want^2; max_error = the worst element's
// |got - want| / (|want| + rms(want row)), as ordered bits; not_finite counts elements that are
// not.
__global__ void __launch_bounds__(256)
    compare(Matrix got, const int* positions, const float* want, int columns, double* result,
            unsigned* max_error, unsigned long long* not_finite) {
  __shared__ double sums[2][256];
  __shared__ float worst[256];
  const i64 row = blockIdx.x;
  const i64 got_row = positions != nullptr ? positions[row] : row;
  const int thread = threadIdx.x;
  double error = 0;
  double norm = 0;
  unsigned bad = 0;
  for (int c = thread; c < columns; c += 256) {
    const float expected = want[row * columns + c];
    const float difference = element(got, got_row, c, columns) - expected;
    if (!(fabsf(difference) <= 3.0e38f)) {
      ++bad;
      continue;
    }
    error += static_cast<double>(difference) * difference;
    norm += static_cast<double>(expected) * expected;
  }
  if (bad > 0) atomicAdd(not_finite, static_cast<unsigned long long>(bad));
  sums[0][thread] = error;
  sums[1][thread] = norm;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (thread < half) {
      sums[0][thread] += sums[0][thread + half];
      sums[1][thread] += sums[1][thread + half];
    }
    __syncthreads();
  }
  const float rms = static_cast<float>(sqrt(sums[1][0] / columns));
  float largest = 0;
  for (int c = thread; c < columns; c += 256) {
    const float expected = want[row * columns + c];
    const float difference = fabsf(element(got, got_row, c, columns) - expected);
    largest = fmaxf(largest, difference / fmaxf(fabsf(expected) + rms, 1.0e-30f));
  }
  worst[thread] = largest;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (thread < half) worst[thread] = fmaxf(worst[thread], worst[thread + half]);
    __syncthreads();
  }
  if (thread == 0) {
    atomicAdd(&result[0], sums[0][0]);
    atomicAdd(&result[1], sums[1][0]);
    atomicMax(max_error, __float_as_uint(worst[0]));  // floats >= 0 order like their bits
  }
}

}  // namespace moetune_reference
