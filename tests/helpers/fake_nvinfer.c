/* The entry points that TensorRT's Python bindings look for, without anything behind them: the bindings can be
 * imported, and every factory returns nothing. Compiled by the tests as libnvinfer, libnvonnxparser and their kin. */
#define ENTRY(name) void *name(void) { return 0; }
ENTRY(createInferBuilder_INTERNAL)
ENTRY(createInferRefitter_INTERNAL)
ENTRY(createInferRuntime_INTERNAL)
ENTRY(createNvOnnxParser_INTERNAL)
ENTRY(createNvOnnxParserRefitter_INTERNAL)
ENTRY(getBuilderPluginRegistry)
ENTRY(getPluginRegistry)
ENTRY(getNvOnnxParserVersion)
ENTRY(initLibNvInferPlugins)
/* of 8.x only, C++ names of two parsers that no longer exist */
ENTRY(_ZN11nvuffparser15createUffParserEv)
ENTRY(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
ENTRY(_ZN14nvcaffeparser117createCaffeParserEv)
ENTRY(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
