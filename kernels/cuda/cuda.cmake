# The CUDA backend, twice from the same sources: liblean_cuda_emu.so by the C++ compiler, for tests
# on every machine, and liblean_cuda.so by nvcc where there is one. Both are plugins, so that the
# program starts without CUDA.
#
#   LEAN_NVCC                 the compiler; found on PATH and in /usr/local/cuda, "OFF": none
#   LEAN_CUDA_ARCHITECTURES   compute capabilities without the point; of the highest, if it is 120
#                             or more, PTX goes along for later ones. The default is what tests
#                             compile; launch/setup.sh builds for the GPUs of its machine, the
#                             preset all-gpus for all, in 15 to 20 minutes of a core: one of 180 MB.
set(LEAN_CUDA_ARCHITECTURES "86;90" CACHE STRING "compute capabilities to compile for")
find_program(LEAN_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(NOT LEAN_NVCC)
  message(STATUS "no nvcc: built without liblean_cuda.so")
endif()

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB EMU_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/emu/*.cpp)
# Only the file with the plugin's table knows the build: the kernels are not compiled anew for it.
set(build_id_definition LEAN_BUILD_ID="${PROJECT_VERSION}-${commit}")
add_library(lean_plugin_base OBJECT proto/base/error.c proto/base/tensor_type.c)
target_include_directories(lean_plugin_base PRIVATE ${CMAKE_SOURCE_DIR})
set_target_properties(lean_plugin_base PROPERTIES POSITION_INDEPENDENT_CODE ON)

# Beside the program and where it will be installed, as the MPI plugin.
set(PLUGIN_FOLDER ${CMAKE_BINARY_DIR}/lib/lean)

add_library(lean_cuda_emu MODULE ${CUDA_SOURCES} ${EMU_SOURCES} $<TARGET_OBJECTS:lean_plugin_base>)
set_source_files_properties(${CUDA_SOURCES} PROPERTIES LANGUAGE CXX)
set_source_files_properties(kernels/cuda/backend_cuda.cu
  PROPERTIES COMPILE_DEFINITIONS ${build_id_definition})
target_include_directories(lean_cuda_emu PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_options(lean_cuda_emu PRIVATE -Wno-unknown-pragmas # "unroll" is nvcc's
                       -Wno-deprecated-enum-enum-conversion)
if(LEAN_ASAN) # of its checks those that kernels can fail: all of them take minutes to compile
  set_property(SOURCE ${CUDA_SOURCES} APPEND PROPERTY COMPILE_OPTIONS
    -fno-sanitize=undefined -fsanitize=alignment -O1 -g1)
endif()
target_link_libraries(lean_cuda_emu PRIVATE Threads::Threads)
if(NOT LEAN_ASAN AND NOT LEAN_TSAN)
  target_link_options(lean_cuda_emu PRIVATE -Wl,-z,defs)
endif()
set_target_properties(lean_cuda_emu PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PLUGIN_FOLDER})
add_custom_command(TARGET lean_cuda_emu POST_BUILD COMMAND ${CMAKE_COMMAND} -E create_symlink
  lib/lean/liblean_cuda_emu.so ${CMAKE_BINARY_DIR}/liblean_cuda_emu.so)

if(NOT LEAN_NVCC OR LEAN_ASAN OR LEAN_TSAN)
  return()
endif()

# nvcc by rules of our own: CMake's CUDA language would probe it, and the flags of C are not its.
set(nvcc_flags -std=c++20 -O3 -fmad=false -ftz=false -prec-div=true -prec-sqrt=true
    -lineinfo -diag-suppress 177 # static functions of a header that a file does not use
    -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off -ccbin ${CMAKE_CXX_COMPILER}
    -I${CMAKE_SOURCE_DIR} -D_GNU_SOURCE)
foreach(architecture ${LEAN_CUDA_ARCHITECTURES})
  list(APPEND nvcc_targets -gencode arch=compute_${architecture},code=sm_${architecture})
endforeach()
set(highest 0)
foreach(architecture ${LEAN_CUDA_ARCHITECTURES})
  if(architecture GREATER highest)
    set(highest ${architecture})
  endif()
endforeach()
if(highest GREATER_EQUAL 120)
  list(APPEND nvcc_targets -gencode arch=compute_${highest},code=compute_${highest})
endif()
foreach(source ${CUDA_SOURCES})
  get_filename_component(stem ${source} NAME_WE)
  set(object ${CMAKE_BINARY_DIR}/cuda/${stem}.o)
  set(definitions)
  if(stem STREQUAL backend_cuda)
    set(definitions -D${build_id_definition})
  endif()
  add_custom_command(OUTPUT ${object}
    COMMAND ${LEAN_NVCC} ${nvcc_flags} ${definitions} ${nvcc_targets} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${stem}.cu" VERBATIM)
  list(APPEND cuda_objects ${object})
endforeach()
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda ${PLUGIN_FOLDER})
file(REAL_PATH ${LEAN_NVCC} nvcc_home)
cmake_path(GET nvcc_home PARENT_PATH nvcc_home)
cmake_path(GET nvcc_home PARENT_PATH nvcc_home) # its lib is not where nvcc looks in Python wheels
set(CUDA_PLUGIN ${PLUGIN_FOLDER}/liblean_cuda.so)
add_custom_command(OUTPUT ${CUDA_PLUGIN}
  COMMAND ${LEAN_NVCC} -shared -cudart static -L${nvcc_home}/lib -ccbin ${CMAKE_CXX_COMPILER} ${nvcc_targets}
          -Xlinker --exclude-libs,ALL -Xlinker -z,defs
          ${cuda_objects} $<TARGET_OBJECTS:lean_plugin_base> -o ${CUDA_PLUGIN}
  COMMAND ${CMAKE_COMMAND} -E create_symlink lib/lean/liblean_cuda.so
          ${CMAKE_BINARY_DIR}/liblean_cuda.so
  DEPENDS ${cuda_objects} $<TARGET_OBJECTS:lean_plugin_base> VERBATIM COMMAND_EXPAND_LISTS)
add_custom_target(lean_cuda ALL DEPENDS ${CUDA_PLUGIN})
