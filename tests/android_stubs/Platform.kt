@file:Suppress("unused")

package android.content

import android.content.res.AssetManager
import java.io.File

class Context(folder: File) {
    val assets = AssetManager(File(folder, "assets"))
    val noBackupFilesDir = File(folder, "files")
}
