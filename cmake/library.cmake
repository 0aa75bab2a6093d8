# libmoetune as a shared and a static library, and what `cmake --install` puts where: programs find it by
# find_package(moetune) or by pkg-config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(moetune SHARED ${LIBRARY_OBJECTS})
add_library(moetune_static STATIC ${LIBRARY_OBJECTS})
foreach(library moetune moetune_static)
  add_library(moetune::${library} ALIAS ${library})
  set_target_properties(${library} PROPERTIES OUTPUT_NAME moetune LINKER_LANGUAGE CXX)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src/runtime> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()
set_target_properties(moetune PROPERTIES LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/moetune.map
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
# The CUDA runtime and the C++ library are inside, so that the library runs beside any other ones.
target_link_libraries(moetune PRIVATE CUDA::cudart_static Threads::Threads ${CMAKE_DL_LIBS})
target_link_options(moetune PRIVATE -static-libstdc++ -static-libgcc -Wl,--no-undefined
                    -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/moetune.map $<$<CONFIG:Release>:-s>)
target_compile_definitions(moetune_static INTERFACE MOETUNE_STATIC)
target_link_libraries(moetune_static INTERFACE CUDA::cudart_static Threads::Threads ${CMAKE_DL_LIBS}
                      stdc++)

install(TARGETS moetune moetune_static EXPORT moetune-targets COMPONENT library
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${PROJECT_SOURCE_DIR}/src/runtime/moetune.h COMPONENT library
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT moetune-targets NAMESPACE moetune:: COMPONENT library
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moetune)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/moetune-config.cmake.in
  ${PROJECT_BINARY_DIR}/moetune-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moetune)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moetune-config-version.cmake
  COMPATIBILITY SameMinorVersion)
configure_file(${PROJECT_SOURCE_DIR}/cmake/moetune.pc.in ${PROJECT_BINARY_DIR}/moetune.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moetune-config.cmake
  ${PROJECT_BINARY_DIR}/moetune-config-version.cmake COMPONENT library
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moetune)
install(FILES ${PROJECT_BINARY_DIR}/moetune.pc COMPONENT library
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
