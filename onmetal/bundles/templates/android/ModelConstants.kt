package @@package@@

/** What the artifact is, takes and gives. Written by onmetal from the candidate that it chose. */
object ModelConstants {
    const val RUNTIME = "@@runtime@@"

    /** Of the runtime that onmetal ran; build.gradle.kts says which one is in the app. */
    const val MEASURED_VERSION = @@measured_version@@
    const val THREADS = @@threads@@

    /** The asset that the runtime opens. */
    const val ARTIFACT = @@artifact@@

    /** Over all files of the artifact in their order, as in manifest.json. */
    const val SHA256 = @@sha256@@

    /** Each file of the artifact and its SHA-256. */
    val ASSETS: Map<String, String> = mapOf(
        @@assets@@
    )

    val INPUTS: List<TensorSpec> = listOf(
        @@inputs@@
    )

    val OUTPUTS: List<TensorSpec> = listOf(
        @@outputs@@
    )
}
