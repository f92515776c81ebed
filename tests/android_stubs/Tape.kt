package tape

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What onmetal's own runner gave the artifact in each inference, and what came back. */
object Tape {
    private val folder = File(System.getProperty("tape"))
    private var number = 0

    fun count(kind: String): Int =
        generateSequence(0) { it + 1 }.first { !File(folder, "$kind-$it-0.bin").exists() }

    fun bytes(kind: String, place: Int): ByteArray = File(folder, "$kind-$place-$number.bin").readBytes()

    fun requireInput(place: Int, given: ByteArray) {
        val wanted = bytes("in", place)
        check(given.contentEquals(wanted)) {
            val first = wanted.indices.firstOrNull { it >= given.size || given[it] != wanted[it] }
            "run $number, input $place: byte $first of ${wanted.size} differs, ${given.size} given"
        }
    }

    fun next() {
        number += 1
    }
}

fun little(count: Int): ByteBuffer = ByteBuffer.allocate(count).order(ByteOrder.LITTLE_ENDIAN)

fun little(bytes: ByteArray): ByteBuffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
