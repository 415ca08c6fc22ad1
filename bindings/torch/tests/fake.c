/* What stands in for PyTorch, and for a model that it compiled, where there is neither: built once as libtorch_cpu.so with -DLIBRARY,
   and once as the model. The "device" is the host's memory. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct tensor {
  void *data;
  int64_t rank, sizes[8], strides[8];
  int32_t dtype, device;
  int owned;
};

#ifdef LIBRARY

static int live = 0;

int tensors_alive(void) { return live; }

struct tensor *fake_tensor(void *data, int64_t rank, const int64_t *sizes, const int64_t *strides, int32_t dtype,
                           int32_t device) {
  struct tensor *made = calloc(1, sizeof *made);
  made->data = data, made->rank = rank, made->dtype = dtype, made->device = device;
  memcpy(made->sizes, sizes, rank * 8), memcpy(made->strides, strides, rank * 8);
  live++;
  return made;
}

int32_t aoti_torch_create_tensor_from_blob_v2(void *data, int64_t rank, const int64_t *sizes, const int64_t *strides,
                                              int64_t offset, int32_t dtype, int32_t device, int32_t index,
                                              struct tensor **out, int32_t layout, const uint8_t *meta, int64_t len) {
  if (offset || index != 3 || layout != 77 || meta || len || rank > 8) return 1;
  *out = fake_tensor(data, rank, sizes, strides, dtype, device);
  return 0;
}

int32_t aoti_torch_delete_tensor_object(struct tensor *t) {
  if (t->owned) free(t->data);
  free(t);
  live--;
  return 0;
}

#define ASK(name, type, field) \
  int32_t aoti_torch_get_##name(struct tensor *t, type *out) { *out = t->field; return 0; }
ASK(data_ptr, void *, data)
ASK(dim, int64_t, rank)
ASK(sizes, int64_t *, sizes)
ASK(strides, int64_t *, strides)
ASK(dtype, int32_t, dtype)
ASK(device_type, int32_t, device)

#define NUMBER(name, value) int32_t aoti_torch_##name(void) { return value; }
NUMBER(device_type_cuda, 55)
NUMBER(layout_strided, 77)
NUMBER(dtype_bool, 11)
NUMBER(dtype_uint8, 0)
NUMBER(dtype_uint16, 27)
NUMBER(dtype_uint32, 28)
NUMBER(dtype_uint64, 29)
NUMBER(dtype_int8, 1)
NUMBER(dtype_int16, 2)
NUMBER(dtype_int32, 3)
NUMBER(dtype_int64, 4)
NUMBER(dtype_float16, 5)
NUMBER(dtype_bfloat16, 15)
NUMBER(dtype_float32, 6)
NUMBER(dtype_float64, 7)

#else

/* Linkers of C put no C++ library in; the name alone is looked for. */
const char needs[] = "libstdc++.so.6";

int tensors_alive(void);
struct tensor *fake_tensor(void *, int64_t, const int64_t *, const int64_t *, int32_t, int32_t);
int32_t aoti_torch_delete_tensor_object(struct tensor *);

int32_t AOTInductorModelContainerCreateWithDevice(void **out, size_t models, const char *device, const char *folder) {
  if (models != 1 || strcmp(device, "cuda:3") || !*folder) return 1;
  *out = MODE == 1 ? NULL : (void *)needs;
  return MODE == 1;
}

int32_t AOTInductorModelContainerDelete(void *container) { return container != (void *)needs; }

int32_t AOTInductorModelContainerGetNumInputs(void *container, size_t *out) {
  *out = 1;
  return 0;
}

int32_t AOTInductorModelContainerGetNumOutputs(void *container, size_t *out) {
  *out = 2;
  return 0;
}

/* Doubles its input, and counts it. Modes are the ways in which that goes wrong. */
int32_t AOTInductorModelContainerRunSingleThreaded(void *container, struct tensor **inputs, size_t takes,
                                                   struct tensor **outputs, size_t gives, void *stream, void *executor) {
  if (takes != 1 || gives != 2 || stream != (void *)99 || executor) return 1;
  struct tensor *input = inputs[0];
  int64_t elements = 1;
  for (int64_t d = 0; d < input->rank; d++) elements *= input->sizes[d];
  if (MODE == 2) {
    aoti_torch_delete_tensor_object(input);
    return 1;
  }
  float *doubled = malloc(elements * 4);
  for (int64_t i = 0; i < elements; i++) doubled[i] = 2 * ((float *)input->data)[i];
  outputs[0] = fake_tensor(doubled, input->rank, input->sizes, input->strides, 6, 55);
  outputs[0]->owned = 1;
  if (MODE == 3) outputs[0]->strides[0] = 1;
  int64_t *count = malloc(8), one = 1;
  *count = elements;
  outputs[1] = fake_tensor(count, MODE == 4 ? 1 : 0, &one, &one, 4, MODE == 5 ? 0 : 55);
  outputs[1]->owned = 1;
  aoti_torch_delete_tensor_object(input);
  return 0;
}

#endif
