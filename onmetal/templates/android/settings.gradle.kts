// Makes this folder a build of its own: `gradle connectedAndroidTest`. As a module of an app the
// app's own settings.gradle.kts is read instead, and must know the two plugins.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
    plugins {
        id("com.android.library") version "8.13.0"
        id("org.jetbrains.kotlin.android") version "2.2.20"
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "onmetal-model"
