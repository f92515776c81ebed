// Makes this folder a build of its own: `gradle connectedAndroidTest`. As a module of an app the
// app's own settings.gradle.kts is read instead, and must know the two plugins.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
    plugins {
        // Versions that belong together: Kotlin 2.3 needs the dexer of 8.13.2, not that of 8.13.0.
        // https://developer.android.com/build/kotlin-support
        id("com.android.library") version "8.13.2"
        id("org.jetbrains.kotlin.android") version "2.3.20"
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "onmetal-model"
